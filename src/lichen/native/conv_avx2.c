/* AVX2: 16-bit products, exact always (`maddubs` saturates: wrong sums with weights above 63). */
#include "plan.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2")
#endif

#include "rows.h"

#define PIXELS 6 /* times two accumulators, two weights, a pixel and a product: 16 registers */
#define INLINE static inline __attribute__((always_inline))

INLINE __m256i finish(__m256i acc, const int32_t *constants) {
    const __m256i shift = _mm256_loadu_si256((const __m256i *)(const void *)(constants + 16));
    const __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)(constants + 32));
    const __m256i odd = _mm256_loadu_si256((const __m256i *)(const void *)(constants + 48));
    __m256i bit = _mm256_and_si256(_mm256_srav_epi32(acc, shift), odd);
    return _mm256_srav_epi32(_mm256_add_epi32(_mm256_add_epi32(acc, half), bit), shift);
}

INLINE void store(const conv_row *k, const int32_t *constants, __m256i a, __m256i b, uint8_t *to,
                  int64_t n) {
    uint8_t whole[64];
    uint8_t *at = n < 16 ? whole : to;
    const int64_t bytes = storage_bytes(k->storage);
    if (k->storage == STORE_S32) {
        _mm256_storeu_si256((__m256i *)(void *)at, a);
        _mm256_storeu_si256((__m256i *)(void *)(at + 32), b);
    } else {
        __m256i words = _mm256_packs_epi32(finish(a, constants), finish(b, constants + 8));
        words = _mm256_permute4x64_epi64(words, 0xD8);
        words = _mm256_max_epi16(words, _mm256_set1_epi16((int16_t)k->low));
        words = _mm256_min_epi16(words, _mm256_set1_epi16((int16_t)k->high));
        _mm256_storeu_si256((__m256i *)(void *)at, words);
    }
    if (n < 16) memcpy(to, whole, (size_t)(n * bytes));
}

/* `pixels` output pixels from x on, 16 outputs. */
INLINE void tile(const conv_row *k, const uint8_t *block, const int32_t *constants,
                 const window *n, int64_t x, int64_t first, const int pixels) {
    __m256i acc[PIXELS][2];
    const __m256i bias0 = _mm256_loadu_si256((const __m256i *)(const void *)constants);
    const __m256i bias1 = _mm256_loadu_si256((const __m256i *)(const void *)(constants + 8));
#pragma GCC unroll 6
    for (int p = 0; p < pixels; p++) acc[p][0] = bias0, acc[p][1] = bias1;
    const int64_t step = k->pixel_step, step3 = step * 3;
    for (int64_t i = n->row0; i < n->row1; i++) for (int64_t j = n->segment0; j < n->segment1; j++) {
        const uint8_t *weight = block + ((i * k->segments + j) * k->length + n->start) * 64;
        const uint8_t *from = k->rows[i] + x * step + j * k->segment_step + n->start * 4;
        const uint8_t *from3 = from + step3;
        FOR(l, n->length) {
            const __m256i w0 = _mm256_loadu_si256((const __m256i *)(const void *)weight);
            const __m256i w1 = _mm256_loadu_si256((const __m256i *)(const void *)(weight + 32));
#pragma GCC unroll 6
            for (int p = 0; p < pixels; p++) {
                int32_t pair;
                memcpy(&pair, (p < 3 ? from : from3) + (p % 3) * step, 4);
                const __m256i in = _mm256_set1_epi32(pair);
                acc[p][0] = _mm256_add_epi32(acc[p][0], _mm256_madd_epi16(in, w0));
                acc[p][1] = _mm256_add_epi32(acc[p][1], _mm256_madd_epi16(in, w1));
            }
            from += 4, from3 += 4, weight += 64;
        }
    }
#pragma GCC unroll 6
    for (int p = 0; p < pixels; p++)
        store(k, constants, acc[p][0], acc[p][1],
              k->output + (x + p) * k->output_step + first * storage_bytes(k->storage),
              k->outputs - first);
}

static void convolve_words(const conv_row *k, int64_t x0, int64_t x1) {
    const int64_t block_bytes = k->kernel_h * k->segments * k->length * 64;
    for (int64_t first = 0; first < k->outputs; first += 16) {
        const uint8_t *w = k->weight + first / 16 * block_bytes;
        const int32_t *constants = k->constants + first * 4;
        const window n = window_of(k, first / 16, 1);
        int64_t x = x0;
        for (; x + PIXELS <= x1; x += PIXELS) tile(k, w, constants, &n, x, first, PIXELS);
        switch (x1 - x) {
        case 5: tile(k, w, constants, &n, x, first, 5); break;
        case 4: tile(k, w, constants, &n, x, first, 4); break;
        case 3: tile(k, w, constants, &n, x, first, 3); break;
        case 2: tile(k, w, constants, &n, x, first, 2); break;
        case 1: tile(k, w, constants, &n, x, first, 1); break;
        }
    }
}

/* Never called: nothing is stored in bytes here. */
static void convolve_bytes(const conv_row *k, int64_t x0, int64_t x1) {
    (void)k, (void)x0, (void)x1;
}

#include "transforms.h"

static int64_t peak(int64_t rounds) {
    __m256i acc[12], w = _mm256_set1_epi16(1), sum = w;
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) acc[i] = w;
    FOR(r, rounds) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) {
            __m256i product;
            __asm__ volatile("vpmaddwd %1, %1, %0" : "=x"(product) : "x"(w));
            __asm__ volatile("vpaddd %1, %0, %0" : "+x"(acc[i]) : "x"(product));
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) sum = _mm256_add_epi32(sum, acc[i]);
    volatile int32_t sink = _mm256_extract_epi32(sum, 0);
    (void)sink;
    return rounds * 12 * 16;
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static int supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2");
}

const lichen_isa lichen_isa_avx2 = {"avx2", supported, 0, KERNELS, peak};
#else
typedef int lichen_no_avx2; /* ISO C wants a declaration */
#endif
