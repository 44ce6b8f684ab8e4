"""A Stan program that several tests compile once: eight schools, with an include."""

EFFECTS_STAN = "vector effects(real mu, real tau, vector eta) { return mu + tau * eta; }"
SCHOOLS = """
functions {
#include effects.stan
}
data { int<lower=0> J; array[J] real y; vector<lower=0>[J] sigma; }
parameters { real mu; real<lower=0> tau; vector[J] eta; }
transformed parameters { vector[J] theta = effects(mu, tau, eta); }
model { mu ~ normal(0, 5); tau ~ cauchy(0, 5); eta ~ std_normal(); y ~ normal(theta, sigma); }
generated quantities {
  array[J] real y_rep = normal_rng(theta, sigma);
  vector[J] log_lik;
  real best = max(theta);
  for (j in 1:J) log_lik[j] = normal_lpdf(y[j] | theta[j], sigma[j]);
}
"""
