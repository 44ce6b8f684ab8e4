/* bits[i] = draws[i] + 32768 < round(x[i] 65536 / 255): see binary.py. */

#include <stdint.h>

void binarize(const uint8_t *restrict x, const int16_t *restrict draws, uint8_t *restrict bits,
              int64_t count) {
    #pragma omp simd
    for (int64_t i = 0; i < count; i++)
        bits[i] = draws[i] < 257 * x[i] + (x[i] >> 7) - 32768;
}
