/* Kernels for any processor. Everything is stored in 16 bits, so that one inner loop serves. */
#include "plan.h"

#include "rows.h"

/* Saturate and store one pixel of at most 16 outputs. */
static void store_16(const conv_row *k, const int32_t *constants, int32_t *acc, int64_t x,
                     int64_t first) {
    const int64_t n = k->outputs - first < 16 ? k->outputs - first : 16;
    uint8_t *to = k->output + x * k->output_step + first * storage_bytes(k->storage);
    if (k->storage == STORE_S32) {
        memcpy(to, acc, (size_t)n * 4);
        return;
    }
    FOR(l, 16) acc[l] = clip(round_shift(acc[l], constants[16 + l], constants[32 + l],
                                         constants[48 + l]), k->low, k->high);
    store_run(k->storage, to, acc, n);
}

#define PIXELS 4

/* `pixels` output pixels from x on, 16 outputs. */
static inline void tile(const conv_row *k, int64_t x, int64_t first, const int pixels) {
    const window n = window_of(k, first / 16, 1);
    const int64_t taps = k->kernel_h * k->segments * k->length;
    const int16_t *block = (const int16_t *)(const void *)k->weight + first * taps * 2;
    const int32_t *constants = k->constants + first * 4;
    int32_t acc[PIXELS][16];
    FOR(p, pixels) memcpy(acc[p], constants, sizeof acc[p]);
    for (int64_t i = n.row0; i < n.row1; i++) for (int64_t j = n.segment0; j < n.segment1; j++) {
        const int16_t *w = block + ((i * k->segments + j) * k->length + n.start) * 32;
        const uint8_t *from = k->rows[i] + x * k->pixel_step + j * k->segment_step + n.start * 4;
        FOR(l, n.length) {
            int16_t even[16], odd[16];
            FOR(o, 16) even[o] = w[2 * o], odd[o] = w[2 * o + 1];
            FOR(p, pixels) {
                int16_t in[2];
                memcpy(in, from + p * k->pixel_step + l * 4, 4);
                FOR(o, 16) acc[p][o] = add(acc[p][o], in[0] * even[o]);
                FOR(o, 16) acc[p][o] = add(acc[p][o], in[1] * odd[o]);
            }
            w += 32;
        }
    }
    FOR(p, pixels) store_16(k, constants, acc[p], x + p, first);
}

static void convolve_words(const conv_row *k, int64_t x0, int64_t x1) {
    for (int64_t first = 0; first < k->outputs; first += 16) {
        int64_t x = x0;
        for (; x + PIXELS <= x1; x += PIXELS) tile(k, x, first, PIXELS);
        for (; x < x1; x++) tile(k, x, first, 1);
    }
}

/* Never called: nothing is stored in bytes here. */
static void convolve_bytes(const conv_row *k, int64_t x0, int64_t x1) {
    (void)k, (void)x0, (void)x1;
}

#include "transforms.h"

static int supported(void) { return 1; }

/* Plain C has no peak to speak of: the inner loop on data in the first-level cache. */
static int64_t peak(int64_t rounds) {
    static const int16_t weight[64 * 32];
    static const int32_t constants[64], windows[4] = {0, 1, 0, 1};
    static const uint8_t in[64 * 4 * PIXELS];
    const uint8_t *rows[1] = {in};
    int32_t out[16 * PIXELS];
    const conv_row k = {
        .rows = rows, .kernel_h = 1, .kernel_w = 1, .segments = 1, .length = 64,
        .pixel_step = 256, .windows = windows,
        .weight = (const uint8_t *)weight, .constants = constants, .output = (uint8_t *)out,
        .output_step = 64, .outputs = 16, .storage = STORE_S32,
    };
    void (*volatile convolve)(const conv_row *, int64_t, int64_t) = convolve_words; /* as it is */
    rounds = rounds / 256 + 1;
    FOR(i, rounds) convolve(&k, 0, PIXELS);
    return rounds * 64 * 32 * PIXELS;
}

const lichen_isa lichen_isa_plain = {"plain", supported, 0, KERNELS, peak};
