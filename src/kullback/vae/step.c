/* The passes of a VAE's step between its matrix products, each in one sweep over memory.

   Plain C for one thread; the loops are written so that compilers turn them into vector
   instructions. `native_step.py` calls them and says what each computes; the plain PyTorch form is
   `by_hand.py`. All arrays are contiguous float32 unless said otherwise, rows first. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { TANH, RELU, SILU };
enum { GROUP = 112 };  /* factors of at most 2 multiplied before one logarithm is taken */

static inline float within(float x, float limit) {
    return x < -limit ? -limit : x > limit ? limit : x;
}

/* e^x for x in [-87, 87]: 2^n times a Taylor sum over |r| <= log(2)/2, whose rest is 6e-9 */
static inline float exp_of(float x) {
    x = within(x, 87.0f);
    float n = rintf(x * 1.44269504f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float sum = 1.0f / 5040;
    sum = sum * r + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    union { int32_t bits; float value; } power = { ((int32_t)n + 127) << 23 };
    return sum * power.value;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp_of(-x)); }

static inline float tanh_of(float x) {
    float t = exp_of(-2.0f * fabsf(x));
    return copysignf((1.0f - t) / (1.0f + t), x);
}

/* out = a(pre + bias); silu leaves pre + bias in pre, the others work where out is pre */
void activate(float *restrict pre, const float *restrict bias, float *out,
              int64_t rows, int64_t width, int kind) {
    for (int64_t i = 0; i < rows; i++) {
        float *p = pre + i * width, *o = out + i * width;
        if (kind == TANH) {
            #pragma omp simd
            for (int64_t j = 0; j < width; j++) p[j] = tanh_of(p[j] + bias[j]);
        } else if (kind == RELU) {
            #pragma omp simd
            for (int64_t j = 0; j < width; j++) {
                float x = p[j] + bias[j];
                p[j] = x < 0.0f ? 0.0f : x;
            }
        } else {
            #pragma omp simd
            for (int64_t j = 0; j < width; j++) {
                float x = p[j] + bias[j];
                p[j] = x;
                o[j] = x * sigmoid(x);
            }
        }
    }
}

/* grad, by the output, becomes the gradient by pre + bias; its sum over rows is by_bias */
void deactivate(float *restrict grad, const float *restrict kept, float *restrict by_bias,
                int64_t rows, int64_t width, int kind) {
    memset(by_bias, 0, width * sizeof(float));
    for (int64_t i = 0; i < rows; i++) {
        float *g = grad + i * width;
        const float *k = kept + i * width;
        if (kind == TANH) {
            #pragma omp simd
            for (int64_t j = 0; j < width; j++) by_bias[j] += g[j] *= 1.0f - k[j] * k[j];
        } else if (kind == RELU) {
            #pragma omp simd
            for (int64_t j = 0; j < width; j++) by_bias[j] += g[j] = k[j] > 0.0f ? g[j] : 0.0f;
        } else {
            #pragma omp simd
            for (int64_t j = 0; j < width; j++) {
                float s = sigmoid(k[j]);
                by_bias[j] += g[j] *= s * (1.0f + k[j] * (1.0f - s));
            }
        }
    }
}

/* code = [mean | raw] + bias, in place; z = mean + e^raw noise, raw held to [-limit, limit].
   Returns the sum of the KL to N(0, I). */
double sample_latent(float *restrict code, const float *restrict bias, const float *restrict noise,
            float *restrict z, int64_t rows, int64_t latent, float limit) {
    double total = 0.0;
    for (int64_t i = 0; i < rows; i++) {
        float *mean = code + 2 * latent * i, *raw = mean + latent, sum = 0.0f;
        #pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < latent; j++) {
            mean[j] += bias[j];
            raw[j] += bias[latent + j];
            float log_sd = within(raw[j], limit), sd = exp_of(log_sd);
            z[i * latent + j] = mean[j] + sd * noise[i * latent + j];
            sum += 0.5f * (mean[j] * mean[j] + sd * sd - 1.0f) - log_sd;
        }
        total += sum;
    }
    return total;
}

/* by_z, of the likelihood alone, becomes the gradient by code with weight times the KL's added */
void sample_latent_back(const float *restrict by_z, const float *restrict code, const float *restrict noise,
               float *restrict by_code, float *restrict by_bias, int64_t rows, int64_t latent,
               float limit, float weight) {
    memset(by_bias, 0, 2 * latent * sizeof(float));
    for (int64_t i = 0; i < rows; i++) {
        const float *mean = code + 2 * latent * i, *raw = mean + latent;
        float *by_mean = by_code + 2 * latent * i, *by_raw = by_mean + latent;
        #pragma omp simd
        for (int64_t j = 0; j < latent; j++) {
            float sd = exp_of(within(raw[j], limit)), g = by_z[i * latent + j];
            by_bias[j] += by_mean[j] = g + weight * mean[j];
            float inside = raw[j] > -limit && raw[j] < limit ? 1.0f : 0.0f;
            float by_log_sd = g * sd * noise[i * latent + j] + weight * (sd * sd - 1.0f);
            by_bias[latent + j] += by_raw[j] = inside * by_log_sd;
        }
    }
}

/* logits + bias become scale (sigma - x), the gradient of minus scale times the log-likelihood,
   summed over rows in by_bias. Returns the sum of the log-likelihood, x l - log(1 + e^l). */
double bernoulli(float *restrict logits, const float *restrict bias, const float *restrict x,
                 float *restrict by_bias, int64_t rows, int64_t width, float scale) {
    double total = 0.0;
    memset(by_bias, 0, width * sizeof(float));
    for (int64_t i = 0; i < rows; i++) {
        float *l = logits + i * width;
        const float *bit = x + i * width;
        for (int64_t first = 0; first < width; first += GROUP) {
            int64_t last = first + GROUP < width ? first + GROUP : width;
            float linear = 0.0f, product = 1.0f;
            #pragma omp simd reduction(+ : linear) reduction(* : product)
            for (int64_t j = first; j < last; j++) {
                float v = l[j] + bias[j], e = exp_of(-fabsf(v)), whole = 1.0f + e;
                float larger = 1.0f / whole, p = v >= 0.0f ? larger : e * larger;
                linear += bit[j] * v - (v < 0.0f ? 0.0f : v);
                product *= whole;
                by_bias[j] += l[j] = scale * (p - bit[j]);
            }
            total += (double)linear - (double)logf(product);
        }
    }
    return total;
}
