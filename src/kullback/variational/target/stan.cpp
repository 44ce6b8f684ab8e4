// A Stan model behind a C interface: many points a call, for `stan.py`.
//
// It follows, in one file, the C++ that stanc makes of a model, which defines `new_model`. Arrays of
// points are row-major, `[n, dim]`. Where a function fails it returns a negative number, and `words`
// says why. Errors of one point (std::domain_error, as Stan's own samplers treat them) make its
// results NaN and are counted.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include <stan/io/array_var_context.hpp>
#include <stan/model/log_prob_grad.hpp>
#include <stan/model/model_base.hpp>
#include <stan/services/util/create_rng.hpp>

namespace {

using Model = stan::model::model_base;

struct Words {  // room for a message
  char* text;
  int64_t size;

  int64_t say(const std::string& said) const {
    if (size > 0) {
      const size_t kept = std::min<size_t>(said.size(), size - 1);
      std::memcpy(text, said.data(), kept);
      text[kept] = '\0';
    }
    return said.size();
  }
};

template <class T>
struct Variables {  // names on lines of their own, ranks and sides of each, all values column-major
  std::vector<std::string> names;
  std::vector<std::vector<size_t>> sides;
  std::vector<T> values;

  Variables(const char* lines, const int64_t* ranks, const int64_t* all_sides, const T* all_values) {
    std::istringstream text(lines);
    size_t total = 0;
    for (std::string name; std::getline(text, name);) {
      names.push_back(name);
      sides.emplace_back(all_sides, all_sides + *ranks);
      all_sides += *ranks++;
      size_t count = 1;
      for (size_t side : sides.back()) count *= side;
      total += count;
    }
    values.assign(all_values, all_values + total);
  }
};

std::vector<double> row(const double* z, int64_t i, int64_t dim) {
  return std::vector<double>(z + i * dim, z + (i + 1) * dim);
}

}  // namespace

extern "C" {

void* kullback_new(const char* real_names, const int64_t* real_ranks, const int64_t* real_sides,
                   const double* reals, const char* int_names, const int64_t* int_ranks,
                   const int64_t* int_sides, const int* ints, uint64_t seed, char* text,
                   int64_t size) {
  const Words words{text, size};
  std::ostringstream said;
  try {
    stan::math::ChainableStack thread;
    const Variables<double> r(real_names, real_ranks, real_sides, reals);
    const Variables<int> i(int_names, int_ranks, int_sides, ints);
    stan::io::array_var_context data(r.names, r.values, r.sides, i.names, i.values, i.sides);
    return &new_model(data, static_cast<unsigned int>(seed), &said);
  } catch (const std::exception& error) {
    words.say(error.what());
    return nullptr;
  }
}

void kullback_free(void* model) { delete static_cast<Model*>(model); }

// The names of the entries of z, one a line; or of values with their sides, "theta 2 3".
int64_t kullback_names(void* model, int unconstrained, int transformed, int generated, char* text,
                       int64_t size) {
  const Model& of = *static_cast<Model*>(model);
  std::vector<std::string> names;
  std::ostringstream lines;
  if (unconstrained) {
    of.unconstrained_param_names(names, false, false);
    for (const auto& name : names) lines << name << '\n';
  } else {
    std::vector<std::vector<size_t>> sides;
    of.get_param_names(names, transformed, generated);
    of.get_dims(sides, transformed, generated);
    for (size_t i = 0; i < names.size(); i++) {
      lines << names[i];
      for (size_t side : sides[i]) lines << ' ' << side;
      lines << '\n';
    }
  }
  return Words{text, size}.say(lines.str());
}

// log p with all constants and Jacobians, and its gradient; returns how many points were refused.
int64_t kullback_score(void* model, int64_t n, int64_t dim, const double* z, double* log_p,
                       double* gradient, char* text, int64_t size) {
  const Words words{text, size};
  const Model& of = *static_cast<Model*>(model);
  stan::math::ChainableStack thread;
  std::vector<int> none;
  std::vector<double> slope;
  int64_t refused = 0;
  for (int64_t i = 0; i < n; i++) {
    std::vector<double> point = row(z, i, dim);
    try {
      log_p[i] = stan::model::log_prob_grad<false, true>(of, point, none, slope);
      std::copy(slope.begin(), slope.end(), gradient + i * dim);
    } catch (const std::domain_error& error) {
      log_p[i] = std::numeric_limits<double>::quiet_NaN();
      std::fill_n(gradient + i * dim, dim, log_p[i]);
      if (refused++ == 0) words.say(error.what());
    } catch (const std::exception& error) {
      words.say(error.what());
      return -1;
    }
  }
  return refused;
}

// Parameters, transformed ones, and generated quantities if asked, `[n, width]`.
int64_t kullback_values(void* model, int64_t n, int64_t dim, const double* z, int generated,
                        uint64_t seed, int64_t width, double* values, char* text, int64_t size) {
  const Words words{text, size};
  const Model& of = *static_cast<Model*>(model);
  stan::math::ChainableStack thread;
  auto random = stan::services::util::create_rng(static_cast<unsigned int>(seed), 1);
  std::vector<int> none;
  std::vector<double> found;
  int64_t refused = 0;
  for (int64_t i = 0; i < n; i++) {
    std::vector<double> point = row(z, i, dim);
    try {
      of.write_array(random, point, none, found, true, generated);
      if (static_cast<int64_t>(found.size()) != width) {
        words.say("another number of values than the model names");
        return -1;
      }
      std::copy(found.begin(), found.end(), values + i * width);
    } catch (const std::domain_error& error) {
      std::fill_n(values + i * width, width, std::numeric_limits<double>::quiet_NaN());
      if (refused++ == 0) words.say(error.what());
    } catch (const std::exception& error) {
      words.say(error.what());
      return -1;
    }
  }
  return refused;
}

// The z `[dim]` of one value of every parameter.
int64_t kullback_unconstrain(void* model, const char* names, const int64_t* ranks,
                             const int64_t* sides, const double* values, int64_t dim, double* z,
                             char* text, int64_t size) {
  const Words words{text, size};
  try {
    stan::math::ChainableStack thread;
    const Variables<double> r(names, ranks, sides, values);
    stan::io::array_var_context given(r.names, r.values, r.sides);
    std::vector<int> none;
    std::vector<double> found;
    static_cast<Model*>(model)->transform_inits(given, none, found, nullptr);
    if (static_cast<int64_t>(found.size()) != dim) return words.say("another number of reals"), -1;
    std::copy(found.begin(), found.end(), z);
    return 0;
  } catch (const std::exception& error) {
    words.say(error.what());
    return -1;
  }
}

}  // extern "C"
