/* The passes of a VAE's step between its matrix products, each in one sweep over memory.

   Plain C for one thread; the loops are written so that compilers turn them into vector
   instructions. `native_step.py` calls them and says what each computes; the plain PyTorch form is
   `by_hand.py`. All arrays are contiguous float32 unless said otherwise, rows first. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { TANH, RELU, SILU };
enum { ADAM = 4096 };  /* numbers of a block: ADAM_BLOCK in limits.py */
enum { ROW = 1024 };  /* squares summed in float32 before they are added to the total */
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

/* Bits as floats in x, and less shift in centred. */
void centre_bits(const uint8_t *restrict bits, const float *restrict shift, float *restrict x,
                 float *restrict centred, int64_t rows, int64_t width) {
    for (int64_t i = 0; i < rows; i++) {
        const uint8_t *b = bits + i * width;
        float *o = x + i * width, *c = centred + i * width;
        #pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            o[j] = (float)b[j];
            c[j] = o[j] - shift[j];
        }
    }
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

/* The sum of squares of n numbers, each block of them in float32. */
double squares(const float *restrict x, int64_t n) {
    double total = 0.0;
    for (int64_t first = 0; first < n; first += ROW) {
        int64_t last = first + ROW < n ? first + ROW : n;
        float sum = 0.0f;
        #pragma omp simd reduction(+ : sum)
        for (int64_t j = first; j < last; j++) sum += x[j] * x[j];
        total += sum;
    }
    return total;
}

/* Adam's step (Kingma and Ba 2015) on numbers [first, last) of some: factor times the gradient g,
   its moments m and v, of which beta1 and beta2 are kept, and weights p; `kept` of those is kept
   before. rate and root hold the corrections of m, and of the root of v, for their start at 0. */
static void adam_block(float *restrict p, const float *restrict g, float *restrict m,
                       float *restrict v, int64_t first, int64_t last, double beta1, double beta2,
                       float factor, float kept, float rate, float root, float least) {
    float keep1 = (float)beta1, new1 = (float)(1.0 - beta1);
    float keep2 = (float)beta2, new2 = (float)(1.0 - beta2);
    #pragma omp simd
    for (int64_t j = first; j < last; j++) {
        float x = factor * g[j];
        m[j] = keep1 * m[j] + new1 * x;
        v[j] = keep2 * v[j] + new2 * (x * x);
        p[j] = kept * p[j] - rate * m[j] / (sqrtf(v[j]) * root + least);
    }
}

/* The same on blocks [first, last) of ADAM of n numbers, of which the first `matrices` shrink. What
   comes out does not depend on which blocks a call has. */
void adam(float *p, const float *g, float *m, float *v, int64_t first, int64_t last, int64_t n,
          int64_t matrices, double beta1, double beta2, float factor, float kept, float rate,
          float root, float least) {
    for (int64_t block = first; block < last; block++) {
        int64_t start = block * ADAM, end = start + ADAM < n ? start + ADAM : n;
        int64_t middle = matrices < start ? start : matrices < end ? matrices : end;
        adam_block(p, g, m, v, start, middle, beta1, beta2, factor, kept, rate, root, least);
        adam_block(p, g, m, v, middle, end, beta1, beta2, factor, 1.0f, rate, root, least);
    }
}

/* Discretised logistic mixtures: `DiscretisedLogistics` in likelihoods.py says what is computed. */

enum { BLOCK = 64 };  /* places at a time: their terms stay in the first cache */

typedef struct {
    int64_t components, colours, places;
    float half, least;  /* half a level in units of [-1, 1]; the least log-scale */
} Mixture;

static inline float bfloat16_to_float(uint16_t bits) {
    union { uint32_t bits; float value; } wide = { (uint32_t)bits << 16 };
    return wide.value;
}

static inline uint16_t float_to_bfloat16(float x) {  /* to nearest, ties to even; NaN stays */
    union { float value; uint32_t bits; } wide = { x };
    uint32_t rounded = (wide.bits + 0x7fff + ((wide.bits >> 16) & 1)) >> 16;
    return (uint16_t)(x == x ? rounded : 0x7fc0);
}

static inline void read_numbers(float *restrict to, const void *from, int64_t at, int64_t n,
                                int half_width) {
    if (half_width) {
        const uint16_t *narrow = (const uint16_t *)from + at;
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) to[j] = bfloat16_to_float(narrow[j]);
    } else {
        memcpy(to, (const float *)from + at, n * sizeof(float));
    }
}

static inline void write_numbers(void *to, const float *restrict from, int64_t at, int64_t n,
                                 int half_width) {
    if (half_width) {
        uint16_t *narrow = (uint16_t *)to + at;
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) narrow[j] = float_to_bfloat16(from[j]);
    } else {
        memcpy((float *)to + at, from, n * sizeof(float));
    }
}

static inline float log_of(float x) {  /* log x of a normal x > 0, to two ulps; NaN stays */
    union { float value; int32_t bits; } u = { x };
    int32_t shifted = u.bits - 0x3f3504f3;  /* mantissa from sqrt(1/2) to sqrt(2) */
    float e = (float)(shifted >> 23);
    u.bits = (shifted & 0x007fffff) + 0x3f3504f3;
    float m = u.value - 1.0f, s = m / (2.0f + m), z = s * s;
    float sum = z * (0.66666669f + z * (0.39999882f + z * (0.28619230f + z * 0.23344697f)));
    return x == x ? e * 0.693147182f + (2.0f * s + s * sum) : x;
}

static inline float one_less_exp(float w, float e) {  /* 1 - e^-w for w > 0, given e^-w */
    float sum = -1.0f / 5040;
    sum = sum * w + 1.0f / 720;
    sum = sum * w - 1.0f / 120;
    sum = sum * w + 1.0f / 24;
    sum = sum * w - 1.0f / 6;
    sum = sum * w + 0.5f;
    return w < 0.5f ? w * (1.0f - w * sum) : 1.0f - e;
}

/* One block of n <= BLOCK places: parameters p[channel * BLOCK + j] and levels v, in [-1, 1], to
   log p(x|z) of every place, and to g, where it is not NULL, the gradient of their sum.
   log_mass: scratch, BLOCK for each component. */
static void mixture_block(const Mixture *mix, const float *restrict p, const float *restrict v,
                          float *restrict g, float *restrict log_mass, float *restrict value,
                          int64_t n) {
    int64_t k_all = mix->components, colours = mix->colours;
    int64_t means = k_all, scales = means + k_all * colours, pulls = scales + k_all * colours;
    float prior[BLOCK], joint[BLOCK], most_prior[BLOCK], most_joint[BLOCK];
    for (int64_t k = 0; k < k_all; k++) {
        float linear[BLOCK], factor[BLOCK];
        for (int64_t j = 0; j < n; j++) linear[j] = 0.0f, factor[j] = 1.0f;
        for (int64_t c = 0; c < colours; c++) {
            const float *mean = p + (means + c * k_all + k) * BLOCK;
            const float *scale = p + (scales + c * k_all + k) * BLOCK;
            const float *level = v + c * BLOCK;
            float moved[BLOCK];
            for (int64_t j = 0; j < n; j++) moved[j] = mean[j];
            for (int64_t b = 0; b < c; b++) {
                const float *pull = p + (pulls + (c * (c - 1) / 2 + b) * k_all + k) * BLOCK;
                #pragma omp simd
                for (int64_t j = 0; j < n; j++) moved[j] += tanh_of(pull[j]) * v[b * BLOCK + j];
            }
            float *by_mean = g ? g + (means + c * k_all + k) * BLOCK : moved;
            float *by_scale = g ? g + (scales + c * k_all + k) * BLOCK : factor;
            int derive = g != NULL;
            float half = mix->half, least = mix->least;
            #pragma omp simd
            for (int64_t j = 0; j < n; j++) {
                float s = scale[j] < least ? least : scale[j] > 7.0f ? 7.0f : scale[j];
                float sharp = exp_of(-s), centred = (level[j] - moved[j]) * sharp;
                float width = 2.0f * half * sharp;
                float below = level[j] < 1.0f - half ? 1.0f : 0.0f;  /* not the top level */
                float above = level[j] > half - 1.0f ? 1.0f : 0.0f;  /* not the lowest */
                float upper = centred + 0.5f * width, lower = centred - 0.5f * width;
                float e_upper = exp_of(-fabsf(upper)), e_lower = exp_of(-fabsf(lower));
                float e_width = exp_of(-width), rest = one_less_exp(width, e_width);
                float inv_upper = 1.0f / (1.0f + e_upper), inv_lower = 1.0f / (1.0f + e_lower);
                float both = below * above;
                linear[j] -= below * (upper < 0.0f ? -upper : 0.0f);
                linear[j] -= above * (lower > 0.0f ? lower : 0.0f);
                float part = both != 0.0f ? rest : 1.0f;
                part *= below != 0.0f ? inv_upper : 1.0f;
                factor[j] *= part * (above != 0.0f ? inv_lower : 1.0f);
                if (derive) {
                    float over = below * (upper >= 0.0f ? e_upper * inv_upper : inv_upper);
                    float under = above * (lower >= 0.0f ? inv_lower : e_lower * inv_lower);
                    float by_centre = over - under;
                    float by_width = both * e_width / rest + 0.5f * (over + under);
                    float inside = scale[j] >= least && scale[j] <= 7.0f ? 1.0f : 0.0f;
                    by_mean[j] = -by_centre * sharp;
                    by_scale[j] = -inside * (by_width * width + by_centre * centred);
                }
            }
        }
        float *mass = log_mass + k * BLOCK;
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) mass[j] = linear[j] + log_of(factor[j]);
    }
    for (int64_t j = 0; j < n; j++) most_prior[j] = p[j], most_joint[j] = p[j] + log_mass[j];
    for (int64_t k = 1; k < k_all; k++) {
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            float logit = p[k * BLOCK + j], together = logit + log_mass[k * BLOCK + j];
            most_prior[j] = logit > most_prior[j] ? logit : most_prior[j];
            most_joint[j] = together > most_joint[j] ? together : most_joint[j];
        }
    }
    for (int64_t j = 0; j < n; j++) prior[j] = joint[j] = 0.0f;
    for (int64_t k = 0; k < k_all; k++) {
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            float logit = p[k * BLOCK + j], *mass = log_mass + k * BLOCK;
            float a = exp_of(logit - most_prior[j]);
            float b = exp_of(logit + mass[j] - most_joint[j]);
            prior[j] += a;
            joint[j] += b;
            mass[j] = b;
            if (g) g[k * BLOCK + j] = a;
        }
    }
    #pragma omp simd
    for (int64_t j = 0; j < n; j++)
        value[j] = most_joint[j] - most_prior[j] + log_of(joint[j]) - log_of(prior[j]);
    if (!g) return;
    for (int64_t k = 0; k < k_all; k++) {
        float *share = log_mass + k * BLOCK, *by_logit = g + k * BLOCK;
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            share[j] /= joint[j];
            by_logit[j] = share[j] - by_logit[j] / prior[j];
        }
        for (int64_t c = 0; c < colours; c++) {
            float *by_mean = g + (means + c * k_all + k) * BLOCK;
            float *by_scale = g + (scales + c * k_all + k) * BLOCK;
            #pragma omp simd
            for (int64_t j = 0; j < n; j++) {
                by_mean[j] *= share[j];
                by_scale[j] *= share[j];
            }
            for (int64_t b = 0; b < c; b++) {
                int64_t at = (pulls + (c * (c - 1) / 2 + b) * k_all + k) * BLOCK;
                #pragma omp simd
                for (int64_t j = 0; j < n; j++) {
                    float t = tanh_of(p[at + j]);
                    g[at + j] = by_mean[j] * v[b * BLOCK + j] * (1.0f - t * t);
                }
            }
        }
    }
}

/* Pixels that depend on those before them: `Neighbours` in likelihoods/neighbours.py, `WithContext`
   in context.py. Behind the mixture's `own` channels p has, for each of `count` neighbours or
   features, a weight of every mixture logit and one of every colour's means. What a colour's weigh
   is beside[(neighbour * each + colour % each) * BLOCK + j], where `each` is the number of colours,
   or 1 for a feature that all share; what the logits' weigh is grey, its mean over these. */
static void move_block(const Mixture *mix, float *restrict p, const float *restrict beside,
                       const float *restrict grey, int64_t own, int64_t count, int64_t each,
                       int64_t n) {
    int64_t k_all = mix->components, colours = mix->colours, moves = k_all + colours;
    for (int64_t k = 0; k < k_all; k++)
        for (int64_t b = 0; b < count; b++) {
            const float *weight = p + (own + b * moves + k) * BLOCK, *value = grey + b * BLOCK;
            float *logit = p + k * BLOCK;
            #pragma omp simd
            for (int64_t j = 0; j < n; j++) logit[j] += weight[j] * value[j];
        }
    for (int64_t c = 0; c < colours; c++) {
        float shift[BLOCK] = { 0 };
        for (int64_t b = 0; b < count; b++) {
            const float *weight = p + (own + b * moves + k_all + c) * BLOCK;
            const float *value = beside + (b * each + c % each) * BLOCK;
            #pragma omp simd
            for (int64_t j = 0; j < n; j++) shift[j] += weight[j] * value[j];
        }
        for (int64_t k = 0; k < k_all; k++) {
            float *mean = p + (k_all + c * k_all + k) * BLOCK;
            #pragma omp simd
            for (int64_t j = 0; j < n; j++) mean[j] += shift[j];
        }
    }
}

/* The gradient by the weights and, in by_beside where it is not NULL, by what they weigh, from that
   by the logits and means that they move. */
static void move_block_back(const Mixture *mix, float *restrict g, const float *restrict p,
                            const float *restrict beside, const float *restrict grey,
                            float *restrict by_beside, int64_t own, int64_t count, int64_t each,
                            int64_t n) {
    int64_t k_all = mix->components, colours = mix->colours, moves = k_all + colours;
    for (int64_t b = 0; b < count; b++) {
        float by_grey[BLOCK] = { 0 };
        for (int64_t k = 0; k < k_all; k++) {
            int64_t at = (own + b * moves + k) * BLOCK;
            const float *by_logit = g + k * BLOCK, *value = grey + b * BLOCK;
            #pragma omp simd
            for (int64_t j = 0; j < n; j++) {
                g[at + j] = by_logit[j] * value[j];
                by_grey[j] += by_logit[j] * p[at + j];
            }
        }
        for (int64_t c = 0; by_beside && c < each; c++)
            for (int64_t j = 0; j < n; j++)
                by_beside[(b * each + c) * BLOCK + j] = by_grey[j] / each;
    }
    for (int64_t c = 0; c < colours; c++) {
        float by_shift[BLOCK] = { 0 };
        for (int64_t k = 0; k < k_all; k++) {
            const float *by_mean = g + (k_all + c * k_all + k) * BLOCK;
            #pragma omp simd
            for (int64_t j = 0; j < n; j++) by_shift[j] += by_mean[j];
        }
        for (int64_t b = 0; b < count; b++) {
            int64_t at = (own + b * moves + k_all + c) * BLOCK, of = (b * each + c % each) * BLOCK;
            #pragma omp simd
            for (int64_t j = 0; j < n; j++) g[at + j] = by_shift[j] * beside[of + j];
            if (!by_beside) continue;
            #pragma omp simd
            for (int64_t j = 0; j < n; j++) by_beside[of + j] += by_shift[j] * p[at + j];
        }
    }
}

/* log p(x|z) of rows [first, last) of parameters, each [runs, channels, inner] places, in value, and
   its gradient in by, where that is not NULL. Levels x: [batch, runs, colours, inner]; a row r is of
   item r % batch. around: [batch, runs, count * each, inner], the values of `count` neighbours or
   features (see move_block), or NULL where count is 0; by_around: each row's gradient by it, [rows,
   runs, count * each, inner], or NULL. Parameters and by are float32, or bfloat16 where
   `half_width` is 1. Returns 1 where memory is refused, else 0. */
int logistic_mixture(const void *parameters, const float *x, const float *around, void *by,
                     float *by_around, float *value, int64_t first, int64_t last, int64_t batch,
                     int64_t runs, int64_t inner, int64_t components, int64_t colours,
                     int64_t count, int64_t each, float half, float least, int half_width) {
    Mixture mix = { components, colours, runs * inner, half, least };
    int64_t own = components * (1 + 2 * colours + colours * (colours - 1) / 2);
    int64_t channels = own + count * (components + colours), values = count * each;
    int64_t scratch = 2 * channels + colours + components + 1 + 2 * values + count;
    int derive = by || by_around;
    float *p = malloc(sizeof(float) * BLOCK * scratch);
    if (!p) return 1;
    float *g = p + BLOCK * channels, *v = g + BLOCK * channels, *mass = v + BLOCK * colours;
    float *nats = mass + BLOCK * components, *beside = nats + BLOCK, *grey = beside + BLOCK * values;
    float *by_beside = by_around ? grey + BLOCK * count : NULL;
    for (int64_t r = first; r < last; r++) {
        double total = 0.0;
        for (int64_t start = 0; start < mix.places; start += BLOCK) {
            int64_t n = mix.places - start < BLOCK ? mix.places - start : BLOCK;
            for (int64_t done = 0, some; done < n; done += some) {
                int64_t run = (start + done) / inner, at = (start + done) % inner;
                some = inner - at < n - done ? inner - at : n - done;
                int64_t from = ((r * runs + run) * channels) * inner + at;
                const float *levels = x + ((r % batch * runs + run) * colours) * inner + at;
                for (int64_t c = 0; c < channels; c++, from += inner)
                    read_numbers(p + c * BLOCK + done, parameters, from, some, half_width);
                for (int64_t c = 0; c < colours; c++)
                    for (int64_t j = 0; j < some; j++)
                        v[c * BLOCK + done + j] = levels[c * inner + j] * (2.0f * half) - 1.0f;
                int64_t there = ((r % batch * runs + run) * values) * inner + at;
                for (int64_t b = 0; b < values; b++, there += inner)
                    memcpy(beside + b * BLOCK + done, around + there, some * sizeof(float));
            }
            for (int64_t b = 0; b < count; b++)
                for (int64_t j = 0; j < n; j++) {
                    float sum = 0.0f;
                    for (int64_t c = 0; c < each; c++) sum += beside[(b * each + c) * BLOCK + j];
                    grey[b * BLOCK + j] = sum / each;
                }
            if (count) move_block(&mix, p, beside, grey, own, count, each, n);
            mixture_block(&mix, p, v, derive ? g : NULL, mass, nats, n);
            for (int64_t j = 0; j < n; j++) total += nats[j];
            if (derive && count)
                move_block_back(&mix, g, p, beside, grey, by_beside, own, count, each, n);
            for (int64_t done = 0, some; derive && done < n; done += some) {
                int64_t run = (start + done) / inner, at = (start + done) % inner;
                some = inner - at < n - done ? inner - at : n - done;
                int64_t to = ((r * runs + run) * channels) * inner + at;
                for (int64_t c = 0; by && c < channels; c++, to += inner)
                    write_numbers(by, g + c * BLOCK + done, to, some, half_width);
                to = ((r * runs + run) * values) * inner + at;
                for (int64_t b = 0; by_around && b < values; b++, to += inner)
                    memcpy(by_around + to, by_beside + b * BLOCK + done, some * sizeof(float));
            }
        }
        value[r] = (float)total;
    }
    free(p);
    return 0;
}

/* Bits given features of those before them: `weighted_bits` in likelihoods/context.py. Rows
   [first, last) of parameters, each [colours * (1 + width), places]; a row r is of item r % batch
   of x, [batch, colours, places], and of features, [batch, width, places]. Writes log p(x|z) of
   each row in value, and x - sigma, its gradient by the logits, in residual. */
void bits_in_context(const void *parameters, const float *x, const float *features,
                     float *residual, float *value, int64_t first, int64_t last, int64_t batch,
                     int64_t places, int64_t colours, int64_t width, int half_width) {
    for (int64_t r = first; r < last; r++) {
        const float *bits = x + r % batch * colours * places;
        const float *feature = features + r % batch * width * places;
        int64_t row = r * colours * (1 + width);
        double total = 0.0;
        for (int64_t c = 0; c < colours; c++)
            for (int64_t start = 0; start < places; start += BLOCK) {
                int64_t n = places - start < BLOCK ? places - start : BLOCK;
                float logit[BLOCK], weight[BLOCK], linear = 0.0f, product = 1.0f;
                read_numbers(logit, parameters, (row + c) * places + start, n, half_width);
                for (int64_t k = 0; k < width; k++) {
                    int64_t channel = row + colours * (1 + k) + c;
                    const float *f = feature + k * places + start;
                    read_numbers(weight, parameters, channel * places + start, n, half_width);
                    #pragma omp simd
                    for (int64_t j = 0; j < n; j++) logit[j] += weight[j] * f[j];
                }
                const float *bit = bits + c * places + start;
                float *rest = residual + (r * colours + c) * places + start;
                #pragma omp simd reduction(+ : linear) reduction(* : product)
                for (int64_t j = 0; j < n; j++) {
                    float v = logit[j], e = exp_of(-fabsf(v)), whole = 1.0f + e;
                    float larger = 1.0f / whole, p = v >= 0.0f ? larger : e * larger;
                    linear += bit[j] * v - (v < 0.0f ? 0.0f : v);
                    product *= whole;
                    rest[j] = bit[j] - p;
                }
                total += (double)linear - (double)logf(product);
            }
        value[r] = (float)total;
    }
}

/* The gradient of factor times that, by parameters and, summed over the rows of each of the items
   [first, last), by features. */
void bits_in_context_back(const void *parameters, const float *features, const float *residual,
                          const float *factor, void *by, float *by_features, int64_t first,
                          int64_t last, int64_t rows, int64_t batch, int64_t places,
                          int64_t colours, int64_t width, int half_width) {
    for (int64_t item = first; item < last; item++) {
        const float *feature = features + item * width * places;
        float *by_feature = by_features + item * width * places;
        memset(by_feature, 0, width * places * sizeof(float));
        for (int64_t r = item; r < rows; r += batch) {
            int64_t row = r * colours * (1 + width);
            for (int64_t c = 0; c < colours; c++)
                for (int64_t start = 0; start < places; start += BLOCK) {
                    int64_t n = places - start < BLOCK ? places - start : BLOCK;
                    const float *rest = residual + (r * colours + c) * places + start;
                    float g[BLOCK], weight[BLOCK], by_weight[BLOCK], scale = factor[r];
                    #pragma omp simd
                    for (int64_t j = 0; j < n; j++) g[j] = scale * rest[j];
                    write_numbers(by, g, (row + c) * places + start, n, half_width);
                    for (int64_t k = 0; k < width; k++) {
                        int64_t at = (row + colours * (1 + k) + c) * places + start;
                        const float *f = feature + k * places + start;
                        float *sum = by_feature + k * places + start;
                        read_numbers(weight, parameters, at, n, half_width);
                        #pragma omp simd
                        for (int64_t j = 0; j < n; j++) {
                            by_weight[j] = g[j] * f[j];
                            sum[j] += g[j] * weight[j];
                        }
                        write_numbers(by, by_weight, at, n, half_width);
                    }
                }
        }
    }
}

/* Rows of by, `width` numbers each, times the rows' factors, in out. */
void scale_rows(const void *by, const float *factor, void *out, int64_t first, int64_t last,
                int64_t width, int half_width) {
    for (int64_t r = first; r < last; r++) {
        float f = factor[r];
        if (half_width) {
            const uint16_t *from = (const uint16_t *)by + r * width;
            uint16_t *to = (uint16_t *)out + r * width;
            #pragma omp simd
            for (int64_t j = 0; j < width; j++)
                to[j] = float_to_bfloat16(f * bfloat16_to_float(from[j]));
        } else {
            const float *from = (const float *)by + r * width;
            float *to = (float *)out + r * width;
            #pragma omp simd
            for (int64_t j = 0; j < width; j++) to[j] = f * from[j];
        }
    }
}
