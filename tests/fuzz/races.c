/* The threads of run.c under ThreadSanitizer, with a stand-in for the kernels that writes all of
 * its thread's scratch memory. Now and then a thread waits before it looks at an atomic variable, so
 * that on any machine some workers come too late for a step. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static void dawdle(void) {
    static _Thread_local unsigned turn;
    const struct timespec short_time = {0, 1000};
    if (turn++ % 7 == 0) nanosleep(&short_time, NULL);
}

#undef atomic_load
#define atomic_load(pointer) (dawdle(), atomic_load_explicit(pointer, memory_order_seq_cst))
#include "run.c"

enum { ROWS = 5, WIDTH = 16, THREADS = 4, POOLS = 3, RUNS = 300 };

static int supported(void) { return 1; }
static int64_t peak(int64_t rounds) { return rounds; }

static void work(const lichen_run *run, const lichen_op *op, int64_t y, int64_t x0, int64_t x1,
                 uint8_t *scratch) {
    memset(scratch, (int)y + 1, (size_t)op->high);
    for (int64_t x = x0; x < x1; x++) run->arena[y * WIDTH + x] += scratch[op->high - 1];
}

#define ISA(name)                                                                                  \
    const lichen_isa lichen_isa_##name = {#name, supported, 0, {[KIND_COPY] = work}, peak}
ISA(plain);
#if defined(__x86_64__)
ISA(avx2);
ISA(avx512vnni);
#elif defined(__aarch64__)
ISA(neon);
#if defined(LICHEN_DOTPROD)
ISA(dotprod);
#endif
#endif

static int run_once(lichen_pool *pool, int64_t scratch_bytes) {
    static const int32_t steps[][3] = {{0, 0, 2}, {0, 2, ROWS}};
    uint8_t arena[ROWS * WIDTH] = {0};
    const lichen_op op = {.kind = KIND_COPY, .width = WIDTH, .high = scratch_bytes};
    const lichen_run run = {.ops = &op, .arena = arena};
    if (lichen_run_plan(0, pool, &run, &steps[0][0], 2, scratch_bytes) != LICHEN_OK) return 1;
    for (int64_t i = 0; i < ROWS * WIDTH; i++)
        if (arena[i] != i / WIDTH + 1) return printf("row %d is wrong\n", (int)(i / WIDTH)), 1;
    return 0;
}

int main(void) {
    for (int k = 0; k < POOLS; k++) {
        lichen_pool *pool = lichen_pool_new(THREADS);
        if (pool == NULL) return 1;
        for (int64_t i = 0; i < RUNS; i++)
            if (run_once(pool, 64 + i)) return 1; /* the scratch memory moves now and then */
        lichen_pool_free(pool);
    }
    return 0;
}
