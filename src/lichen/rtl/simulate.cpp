// The driver of a model: beats in and out of its streams, cycle by cycle (simulate.py).
//
// A stream offers or takes a beat in a cycle by chance; an offered beat stays until it is taken.
// Before this text stand PORTS, WORDS, READS and the access to the ports: GIVE and TAKE (payload),
// MINE (the valid or ready that the driver sets), THEIRS (the one that it reads), SETTINGS.
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "Vtop.h"

namespace {

struct Model {
    VerilatedContext context;
    Vtop *top;
    std::vector<std::deque<std::vector<uint32_t>>> queues;
    Model() : top(nullptr) {}
};

inline void give(Vtop *top, int port, const uint32_t *w) {
    switch (port) { GIVE }
}
inline void take(Vtop *top, int port, uint32_t *w) {
    switch (port) { TAKE }
}
inline void mine(Vtop *top, int port, bool b) {
    switch (port) { MINE }
}
inline bool theirs(Vtop *top, int port) {
    switch (port) { THEIRS }
    return false;
}

inline uint32_t random32(unsigned long long &state) {  // splitmix64
    unsigned long long z = (state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return (uint32_t)((z ^ (z >> 31)) >> 16);
}

inline void tick(Vtop *top) {
    top->clk = 1;
    top->eval();
    top->clk = 0;
}

}  // namespace

extern "C" {

void *lichen_create() {
    Model *model = new Model;
    model->context.randReset(2);
    model->context.randSeed(12345);
    model->top = new Vtop(&model->context, "top");
    return model;
}

void lichen_destroy(void *handle) {
    Model *model = (Model *)handle;
    model->top->final();
    delete model->top;
    delete model;
}

void lichen_reset(void *handle) {
    Vtop *top = ((Model *)handle)->top;
    ((Model *)handle)->queues.clear();
    for (int port = 0; port < PORTS; port++) mine(top, port, false);
    top->clk = 0;
    top->rst = 1;
    for (int i = 0; i < 3; i++) {
        top->eval();
        tick(top);
    }
    top->rst = 0;
    top->eval();
}

void lichen_set(void *handle, int index, unsigned long long v) {
    Vtop *top = ((Model *)handle)->top;
    switch (index) { SETTINGS }
}

// stats, per port: beats, first cycle, last cycle, cycles of valid without ready, ready without
// valid. Returns the cycles, or -1 where nothing moves for `patience` cycles.
long long lichen_run(void *handle, uint32_t **data, const long long *wanted,
                     const uint32_t *chance, const int *loops, int loop_count,
                     unsigned long long seed, long long patience, long long *stats) {
    Model *model = (Model *)handle;
    Vtop *top = model->top;
    model->queues.resize(PORTS);
    std::vector<int> partner(PORTS, -1);  // of an input: the output whose beats it gets
    std::vector<bool> looped(PORTS, false);
    for (int i = 0; i < loop_count; i++) {
        partner[loops[2 * i + 1]] = loops[2 * i];
        looped[loops[2 * i]] = looped[loops[2 * i + 1]] = true;
    }
    std::vector<bool> offered(PORTS, false);
    long long left = 0, cycle = 0, quiet = 0;
    for (int port = 0; port < PORTS; port++)
        if (!looped[port]) left += wanted[port];
    std::memset(stats, 0, sizeof(long long) * 5 * PORTS);
    std::vector<uint32_t> beat;
    while (left > 0) {
        for (int port = 0; port < PORTS; port++) {
            bool go = chance[port] >= 65536 || (random32(seed) & 0xFFFF) < chance[port];
            if (READS[port]) {
                bool have = partner[port] >= 0 ? !model->queues[port].empty()
                                               : stats[5 * port] < wanted[port];
                if (!offered[port] && have && go) {
                    offered[port] = true;
                    give(top, port,
                         partner[port] >= 0 ? model->queues[port].front().data()
                                            : data[port] + stats[5 * port] * WORDS[port]);
                }
                mine(top, port, offered[port]);
            } else {
                offered[port] = looped[port] || (go && stats[5 * port] < wanted[port]);
                mine(top, port, offered[port]);
            }
        }
        top->eval();
        bool moved = false;
        for (int port = 0; port < PORTS; port++) {
            long long *s = stats + 5 * port;
            bool other = theirs(top, port);
            if (offered[port] && other) {
                if (!READS[port]) {
                    if (looped[port]) {
                        beat.resize(WORDS[port]);
                        take(top, port, beat.data());
                        for (int i = 0; i < PORTS; i++)
                            if (partner[i] == port) model->queues[i].push_back(beat);
                    } else {
                        take(top, port, data[port] + s[0] * WORDS[port]);
                    }
                } else {
                    offered[port] = false;
                    if (partner[port] >= 0) model->queues[port].pop_front();
                }
                if (s[0]++ == 0) s[1] = cycle;
                s[2] = cycle;
                if (!looped[port]) left--;
                moved = true;
            } else if (offered[port]) {
                s[READS[port] ? 3 : 4]++;
            } else if (other) {
                s[READS[port] ? 4 : 3]++;
            }
        }
        tick(top);
        cycle++;
        quiet = moved ? 0 : quiet + 1;
        if (quiet > patience) return -1;
    }
    for (int port = 0; port < PORTS; port++) mine(top, port, false);
    top->eval();
    return cycle;
}
}
