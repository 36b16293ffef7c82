/* libFuzzer target for the kernels, with AddressSanitizer and UndefinedBehaviorSanitizer.
 *
 * LICHEN_FUZZ_PLANS is a folder of plan files NUMBER.FORM.plan, one for each Program and each way of
 * storing (seeds.py writes them). The input of the fuzzer chooses one and fills its tensors:
 *
 *   bytes 0-1  the Program
 *   byte 2     bits 0-1: threads - 1; bit 2: channels last; bits 3-4: 0 bytes as they are, 1 each bit
 *              one of the two ends of the range, 2 every value an end, 3 a constant
 *   the rest   values, again from the start where it is too short
 *
 * Every instruction set of this processor must give what the plain kernels give.
 */
#include "plan_file.h"

enum { PROGRAMS_MAX = 4096, FORMS = 3 };
static plan_file *plans[PROGRAMS_MAX][FORMS];
static int64_t programs;
static lichen_pool *pools[4];

static void read_all(void) {
    const char *folder = getenv("LICHEN_FUZZ_PLANS");
    if (folder == NULL) plan_fail("LICHEN_FUZZ_PLANS must name their folder");
    for (; programs < PROGRAMS_MAX; programs++) {
        for (int form = 0; form < FORMS; form++) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%d.%d.plan", folder, (int)programs, form);
            plans[programs][form] = plan_read(path);
        }
        if (plans[programs][0] == NULL) break;
    }
    if (programs == 0) plan_fail("there are none in LICHEN_FUZZ_PLANS");
    for (int threads = 1; threads <= 4; threads++) pools[threads - 1] = lichen_pool_new(threads);
}

static int64_t value_of(const uint8_t *data, size_t size, size_t i, int mode, int64_t low,
                        int64_t high) {
    const uint8_t byte = data[i % size];
    switch (mode) {
    case 0: {
        const int64_t two = byte | (int64_t)data[(i + 1) % size] << 8;
        return low + two % (high - low + 1);
    }
    case 1: return data[i / 8 % size] >> (i % 8) & 1 ? high : low;
    case 2: return byte % 2 ? high - (byte >> 6) : low + (byte >> 6);
    default: return low + data[0] * (high - low) / 255;
    }
}

static void fill(uint8_t *to, int64_t count, int64_t bytes, const uint8_t *data, size_t size,
                 int mode, int64_t low, int64_t high) {
    for (int64_t i = 0; i < count; i++) {
        const int64_t value = value_of(data, size, (size_t)i, mode, low, high);
        memcpy(to + i * bytes, &value, (size_t)bytes); /* little-endian */
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (programs == 0) read_all();
    if (size < 4) return -1;
    const int64_t number = (data[0] | data[1] << 8) % programs;
    const int mode = data[2] >> 3 & 3, last = data[2] >> 2 & 1;
    lichen_pool *pool = pools[data[2] & 3];
    data += 3, size -= 3;
    const plan_file *first = plans[number][0];
    const int64_t given_count = first->input_count + first->vector_count;
    uint8_t **given = calloc((size_t)given_count + 1, sizeof *given);
    for (int64_t i = 0; i < given_count; i++) {
        const plan_array *a = &first->arrays[i];
        const int64_t vector = i - first->input_count;
        const int64_t count =
            vector < 0 ? a->channels * a->height * a->width : first->vector_sizes[vector];
        const int64_t bytes = vector < 0 ? a->bytes : 4;
        given[i] = plan_allocate(count * bytes);
        fill(given[i], count, bytes, data, size, mode, vector < 0 ? a->low : 0,
             vector < 0 ? a->high : 32767);
    }
    uint8_t **expected = NULL;
    for (int64_t isa = 0; lichen_isa_name(isa) != NULL; isa++) {
        if (!lichen_isa_supported(isa)) continue;
        const plan_file *p = plans[number][lichen_isa_bytes(isa)];
        if (p == NULL) continue;
        int64_t error = 0;
        uint8_t **found = plan_run(p, isa, pool, given, last, &error);
        if (error != 0) plan_fail("the run failed");
        for (int64_t i = 0; expected != NULL && i < p->output_count; i++) {
            if (memcmp(found[i], expected[i],
                       (size_t)plan_array_bytes(&p->arrays[p->input_count + i])) == 0)
                continue;
            fprintf(stderr, "%s, Program %d, output %d\n", lichen_isa_name(isa), (int)number,
                    (int)i);
            plan_fail("not what the plain kernels give");
        }
        if (expected != NULL) plan_free_outputs(first, found);
        else expected = found;
    }
    plan_free_outputs(first, expected);
    for (int64_t i = 0; i < given_count; i++) free(given[i]);
    free(given);
    return 0;
}
