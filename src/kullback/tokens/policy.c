/* Value terms and slopes of a policy's KL loss from sampled tokens, in one sweep over memory.

   `native_policy.py` calls it and says what each argument is; the plain PyTorch form is `drawn.py`
   and `slopes.py`, which the tests hold this to. It does the ordinary case only: where a log-ratio
   is NaN, infinite or beyond FAR, it gives up and leaves the batch to the plain form. Plain C for
   one thread; the loop is written so that compilers turn it into vector instructions. */

#include <math.h>
#include <stdint.h>

#define FAR 80.0f  /* e^x and its sums with log-ratios stay well inside float32 */
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

/* One row; the sum of its terms is added to `sum`. Returns whether something is out of order. */
static inline __attribute__((always_inline)) int row(
        const Call *call, int64_t i, float scale, double *sum, const int masked, const int off) {
    const int64_t length = call->length;
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
    int odd = 0;
    for (int64_t start = 0; start < length; start += 256) {
        const int64_t end = start + 256 < length ? start + 256 : length;
        float part = 0.0f;
        #pragma omp simd reduction(+ : part) reduction(| : odd)
        for (int64_t j = start; j < end; j++) {
            const int32_t bits = masked ? -(int32_t)mask[j] : -1;
            float log_r = kept(reference[j] - current[j], bits);
            odd |= !(fabsf(log_r) <= FAR);
            float weight = 1.0f, reach = scale;
            if (off) {
                float step = kept(current[j] - behaviour[j], bits);
                odd |= !(fabsf(step) <= FAR);
                float whole = powers_of(step).power;
                weight = whole > most ? most : whole;
                reach = step < low || step > high ? 0.0f : scale;
                log_step[j] = step;
            }
            float term = on_bregman * powers_of(log_r).bregman;
            term = weight * (term + log_r * (on_log + on_square * log_r));
            log_ratio[j] = log_r;
            terms[j] = term;
            slope[j] = -log_r * weight * reach;
            part += term;
        }
        *sum += part;
    }
    return odd;
}

static int64_t count(const uint8_t *mask, int64_t length) {
    int64_t total = 0;
    for (int64_t j = 0; j < length; j++) total += mask[j];
    return total;
}

/* Write log-ratios, terms and slopes, the latter normalised, and the normalised value. Returns
   whether something was out of order: then nothing that was written means anything. */
int policy_terms(const Call *call, double *value) {
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
        odd = masked ? off ? row(call, i, scale, &sum, 1, 1) : row(call, i, scale, &sum, 1, 0)
                     : off ? row(call, i, scale, &sum, 0, 1) : row(call, i, scale, &sum, 0, 0);
        *value += scale * sum;
    }
    return odd;
}
