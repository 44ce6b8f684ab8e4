/* Value terms and slopes of a policy's KL loss from sampled tokens, in one sweep over memory.

   `native_policy.py` calls it and says what each argument is; the plain PyTorch form is `drawn.py`
   and `slopes.py`, which the tests hold this to. It does the ordinary case only: where columns look
   odd (`looks_odd` in sampled/log_probs.py) it gives up and leaves the batch to the plain form; and
   it says where a mean that must be 1 looks odd (`UnitSums.odd` in importance_weights.py). Plain C
   for one thread; the loop is written so that compilers turn it into vector instructions. */

#include <math.h>
#include <stdint.h>

/* as in sampled/limits.py */
#define MAX_LOG_PROB 1e-4f
#define SUSPICIOUS_LOG_PROB -80.0f  /* e^x of log-ratios up to it, and sums of them, stay well inside float32 */
#define UNSURE_LOG_PROB -0.5f
#define MAX_MEAN_SQUARE_GAP 1.0
#define MIN_VARIANCE_FOR_LAG 1e-3
/* as in tokens/limits.py */
#define MEAN_GAP 1e-3
#define RATIO_GAP 1e-5
#define MEAN_ERRORS 4.5
#define HEAVY_LOGS 1.0
enum { SEQUENCE, BATCH, TOKEN, SEQUENCE_MEAN };  /* in the order of NORMALISATIONS */

typedef struct {  /* the same in native_policy.py */
    const float *current, *reference, *behaviour;  /* behaviour NULL: on-policy */
    const uint8_t *mask;  /* NULL: all tokens count */
    int64_t current_stride, reference_stride, behaviour_stride, mask_stride;
    int64_t batch, length;
    float *log_ratio, *log_step, *terms, *slope;  /* [batch, length], contiguous */
    float on_log, on_bregman, on_square;  /* the estimator's form */
    float most, low, high;  /* of a weight; of the log of one that keeps its gradient */
    int32_t normalise;
} Call;

/* What is known to have mean 1: sums of x - 1 and (x - 1)^2 over tokens, of the squares of a
   sequence's sums of x - 1, and of log^2 x */
typedef struct { double gap, square, by_sequence, log_square; } Unit;

/* Of the tokens looked at, one block of BLOCK in LOOK. sequences: rows that have any; sum and square:
   of the current column */
typedef struct { double tokens, sequences, sum, square; Unit weight, ratio; } Found;

/* what `policy_terms` returns, a set of bits; NATIVE_* in native_policy.py */
enum { GIVEN_UP = 1, ODD_WEIGHT = 2, ODD_RATIO = 4 };

enum { BLOCK = 256, LOOK = 16 };

typedef struct { float power, bregman; } Powers;

/* e^x and e^x - 1 - x, the latter to some ulps also where x is small: 2^k (1 + r + r^2 E(r)) with
   |r| <= 1/2, E minimax of degree 6 as in native.cpp */
static inline Powers powers_of(float x) {
    float k = fabsf(x) < 0.5f ? 0.0f : rintf(x * 1.44269504f);
    float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;  /* log 2 in two parts */
    float s = r * r;
    float even = ((2.484157487e-5f * s + 0.001388904052f) * s + 0.04166666431f) * s + 0.5f;
    float odd = (1.996195474e-4f * s + 0.008333182764f) * s + 0.1666666714f;
    float square = s * (even + r * odd), less_one = r + square;
    union { int32_t bits; float value; } two = { ((int32_t)k + 127) << 23 };
    float far_off = two.value * less_one + (two.value - 1.0f) - x;
    return (Powers){ two.value + two.value * less_one, k == 0.0f ? square : far_off };
}

/* x, or 0 where the bits are */
static inline float kept(float x, int32_t bits) {
    union { float value; int32_t bits; } word = { x };
    word.bits &= bits;
    return word.value;
}

/* Whether a log-probability is NaN, above 0 or below SUSPICIOUS_LOG_PROB. */
static inline int outside(float x) {
    return !(fabsf(x - 0.5f * SUSPICIOUS_LOG_PROB) <= -0.5f * SUSPICIOUS_LOG_PROB + MAX_LOG_PROB);
}

/* Whether one is 0 and the other below UNSURE_LOG_PROB. */
static inline int zero_beside(float x, float y) {
    return (x * y == 0.0f) & (fabsf(x - y) > -UNSURE_LOG_PROB);
}

/* Add a row's sums. */
static inline void add(Unit *unit, const Unit *row) {
    unit->gap += row->gap;
    unit->square += row->square;
    unit->by_sequence += row->gap * row->gap;
    unit->log_square += row->log_square;
}

/* A block of a row, from `start` on; its terms are added to `sum`, and if it is looked at its sums to
   `found`. Returns whether something is out of order. */
static inline __attribute__((always_inline)) int block(
        const Call *call, int64_t i, int64_t start, float scale, double *sum, Found *found,
        const int masked, const int off, const int look) {
    const int64_t length = call->length, end = start + BLOCK < length ? start + BLOCK : length;
    const float *restrict current = call->current + i * call->current_stride;
    const float *restrict reference = call->reference + i * call->reference_stride;
    const float *restrict behaviour = off ? call->behaviour + i * call->behaviour_stride : current;
    const uint8_t *restrict mask = masked ? call->mask + i * call->mask_stride : 0;
    float *restrict log_ratio = call->log_ratio + i * length;
    float *restrict log_step = off ? call->log_step + i * length : 0;
    float *restrict terms = call->terms + i * length, *restrict slope = call->slope + i * length;
    const float on_log = call->on_log, on_bregman = call->on_bregman;
    const float on_square = 0.5f * call->on_square;
    const float most = call->most, low = call->low, high = call->high;
    int odd = 0, tokens = 0;
    float part = 0.0f, w1 = 0.0f, w2 = 0.0f, w3 = 0.0f, r1 = 0.0f, r2 = 0.0f, r3 = 0.0f;
    float c1 = 0.0f, c2 = 0.0f;
    #pragma omp simd reduction(+ : part, w1, w2, w3, r1, r2, r3, c1, c2, tokens) reduction(| : odd)
    for (int64_t j = start; j < end; j++) {
        const int32_t bits = masked ? -(int32_t)mask[j] : -1;
        const float here = current[j], there = reference[j];
        const float log_r = kept(there - here, bits);
        odd |= outside(here) & bits;
        odd |= outside(there) & bits;
        float weight = 1.0f, reach = scale;
        if (off) {
            const float from = behaviour[j], step = kept(here - from, bits);
            odd |= outside(from) & bits;
            const float whole = powers_of(step).power;
            weight = whole > most ? most : whole;
            reach = step < low || step > high ? 0.0f : scale;
            log_step[j] = step;
            if (look) {
                odd |= zero_beside(here, from) & bits;
                w1 += whole - 1.0f;
                w2 += (whole - 1.0f) * (whole - 1.0f);
                w3 += step * step;
            }
        }
        const float bregman = powers_of(log_r).bregman, less_one = bregman + log_r;
        float term = on_bregman * bregman;
        term = weight * (term + log_r * (on_log + on_square * log_r));
        log_ratio[j] = log_r;
        terms[j] = term;
        slope[j] = -log_r * weight * reach;
        part += term;
        if (look) {
            odd |= zero_beside(here, there) & bits;
            tokens -= bits;
            c1 += kept(here, bits);
            c2 += kept(here * here, bits);
            r1 += less_one;
            r2 += less_one * less_one;
            r3 += log_r * log_r;
        }
    }
    *sum += part;
    if (look && tokens) {
        const Unit weight = { w1, w2, 0.0, w3 }, ratio = { r1, r2, 0.0, r3 };
        add(&found->weight, &weight);
        add(&found->ratio, &ratio);
        found->sum += c1;
        found->square += c2;
        found->tokens += tokens;
        found->sequences += 1;
    }
    return odd;
}

/* One row; the sum of its terms is added to `sum`. Returns whether something is out of order. */
static inline __attribute__((always_inline)) int row(
        const Call *call, int64_t i, float scale, double *sum, Found *found, const int masked,
        const int off) {
    int odd = 0;
    for (int64_t start = 0; start < call->length; start += BLOCK)
        odd |= (start / BLOCK + i) % LOOK
            ? block(call, i, start, scale, sum, found, masked, off, 0)
            : block(call, i, start, scale, sum, found, masked, off, 1);
    return odd;
}

static int64_t count(const uint8_t *mask, int64_t length) {
    int64_t total = 0;
    for (int64_t j = 0; j < length; j++) total += mask[j];
    return total;
}

/* Whether the mean of x is far from 1, by more than least, as `UnitSums.odd` and `odd_ratio` say. */
static int odd_mean(const Unit *unit, double tokens, double sequences, double least) {
    const double between = unit->by_sequence - unit->gap * unit->gap / fmax(sequences, 1.0);
    const double gap = fabs(unit->gap), error = sqrt(fmax(unit->square, between));
    const int heavy = unit->log_square > HEAVY_LOGS * HEAVY_LOGS * tokens;
    return gap > least * tokens && gap > MEAN_ERRORS * error && (unit->gap > 0.0 || !heavy);
}

/* Write log-ratios, terms and slopes, the latter normalised, and the normalised value. Returns bits:
   GIVEN_UP where something was out of order (then nothing that was written means anything), and
   which mean is odd. */
int policy_terms(const Call *call, double *value) {
    Found sums = { 0.0 }, *found = &sums;
    const int64_t batch = call->batch, length = call->length;
    const int masked = call->mask != 0, off = call->behaviour != 0, how = call->normalise;
    int64_t tokens = 0, sequences = 0;
    for (int64_t i = 0; i < batch; i++) {
        int64_t own = masked ? count(call->mask + i * call->mask_stride, length) : length;
        tokens += own;
        sequences += own > 0;
    }
    double divisor = how == BATCH ? 1 : how == TOKEN ? tokens : sequences;
    int odd = 0;
    *value = 0.0;
    for (int64_t i = 0; i < batch && !odd; i++) {
        double own = 1.0, sum = 0.0;
        if (how == SEQUENCE_MEAN)
            own = masked ? count(call->mask + i * call->mask_stride, length) : length;
        double scale = 1.0 / ((divisor > 0 ? divisor : 1) * (own > 0 ? own : 1));
        odd = masked ? off ? row(call, i, scale, &sum, found, 1, 1)
                           : row(call, i, scale, &sum, found, 1, 0)
                     : off ? row(call, i, scale, &sum, found, 0, 1)
                           : row(call, i, scale, &sum, found, 0, 0);
        *value += scale * sum;
    }
    const double all = found->tokens > 0 ? found->tokens : 1.0, mean = found->sum / all;
    const double variance = found->square / all - mean * mean;
    const double apart = fmax(found->ratio.log_square, found->weight.log_square) / all;
    if (odd || (variance > MIN_VARIANCE_FOR_LAG && apart > MAX_MEAN_SQUARE_GAP * variance)) return GIVEN_UP;
    return odd_mean(&found->weight, found->tokens, found->sequences, MEAN_GAP) * ODD_WEIGHT
        | odd_mean(&found->ratio, found->tokens, found->sequences, RATIO_GAP) * ODD_RATIO;
}
