// The driver of a model: beats in and out of its streams, cycle by cycle (simulate.py).
//
// A stream offers or takes a beat in a cycle by chance; an offered beat stays until it is taken.
// Beats come from and go to an array of the caller's, or queues: those that join an output to an
// input, and those of memories behind AXI4.
//
// Before this text stand PORTS, WORDS, READS and the access to the ports: GIVE and TAKE (payload),
// MINE (the valid or ready that the driver sets), THEIRS (the one that it reads), SETTINGS, CLOCK
// and HOLD_RESET.
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "Vtop.h"

namespace {

const uint32_t ALWAYS = 65536;
const int BURST_BYTES = 16;  // of a beat of a memory: its data bus
const uint32_t OKAY = 0, SLVERR = 2;

typedef std::vector<uint32_t> Words;

struct Queued {
    long long from;  // the first cycle in which it may be offered
    Words words;
};

struct Port {
    uint32_t *data = nullptr;
    long long wanted = 0, done = 0;
    int last = -1;  // the word of a beat that ends the transfer where it is not 0
    uint32_t chance = ALWAYS;
    bool offered = false;
    bool queued = false;   // its beats come from or go to a queue
    int partner = -1;      // of a queued output: the input to which its beats go, if any
    std::deque<Queued> queue;
    long long first = 0, latest = 0, waits = 0, starved = 0, moved = 0;
};

struct Region {
    uint64_t base, size;
    uint8_t *bytes;
};

struct Write {
    uint64_t address;
};

// A memory behind the five channels of AXI4; beats of 128 bits, incrementing bursts.
struct Memory {
    int aw, w, b, ar, r;
    long long latency;
    std::deque<Write> writes;
    bool wrong = false;
};

struct Model {
    VerilatedContext context;
    Vtop *top = nullptr;
    Port ports[PORTS];
    std::vector<Memory> memories;
    std::vector<Region> regions;
    unsigned long long seed = 1;
    long long cycle = 0, since = 0;  // since: the cycle at which statistics began
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
    top->CLOCK = 1;
    top->eval();
    top->CLOCK = 0;
}

uint8_t *find(Model *model, uint64_t address) {
    for (Region &region : model->regions)
        if (address >= region.base && address + BURST_BYTES <= region.base + region.size)
            return region.bytes + (address - region.base);
    return nullptr;
}

// A beat has left the model for a memory: words are the fields of its channel, each from a word on.
void remember(Model *model, Memory &memory, int port, const Words &words) {
    uint64_t address = words[0] | (uint64_t)(words.size() > 1 ? words[1] : 0) << 32;
    if (port == memory.aw) {
        memory.writes.push_back({address});
    } else if (port == memory.w) {  // data: 4 words, strobes, last
        Write &write = memory.writes.front();
        uint8_t *to = find(model, write.address);
        memory.wrong |= !to;
        for (int i = 0; to && i < BURST_BYTES; i++)
            if (words[4] >> i & 1) to[i] = (uint8_t)(words[i / 4] >> 8 * (i % 4));
        write.address += BURST_BYTES;
        if (words[5]) {
            memory.writes.pop_front();
            uint32_t answer = memory.wrong ? SLVERR : OKAY;
            memory.wrong = false;
            model->ports[memory.b].queue.push_back({model->cycle + memory.latency, {answer}});
        }
    } else if (port == memory.ar) {
        uint32_t beats = words[2] + 1;
        for (uint32_t k = 0; k < beats; k++, address += BURST_BYTES) {
            Words beat(6, 0);  // data: 4 words, answer, last
            uint8_t *from = find(model, address);
            if (from) std::memcpy(beat.data(), from, BURST_BYTES);
            beat[4] = from ? OKAY : SLVERR;
            beat[5] = k + 1 == beats;
            model->ports[memory.r].queue.push_back({model->cycle + memory.latency, beat});
        }
    }
}

// Whether a write of data has its address already: AXI lets a master send data first.
bool listens(Model *model, int port) {
    for (Memory &memory : model->memories)
        if (port == memory.w) return !memory.writes.empty();
    return true;
}

void offer(Model *model) {
    for (int i = 0; i < PORTS; i++) {
        Port &port = model->ports[i];
        bool go = port.chance >= ALWAYS || (random32(model->seed) & 0xFFFF) < port.chance;
        if (READS[i]) {
            bool have = port.queued ? !port.queue.empty() && port.queue.front().from <= model->cycle
                                    : port.done < port.wanted;
            if (!port.offered && have && go) {
                port.offered = true;
                give(model->top, i,
                     port.queued ? port.queue.front().words.data()
                                 : port.data + port.done * WORDS[i]);
            }
        } else {
            port.offered = go && (port.queued ? listens(model, i) : port.done < port.wanted);
        }
        mine(model->top, i, port.offered);
    }
}

void arrive(Model *model, int number) {
    Port &port = model->ports[number];
    if (!port.queued) {
        uint32_t *to = port.data + port.done * WORDS[number];
        take(model->top, number, to);
        if (port.last >= 0 && to[port.last]) port.wanted = port.done + 1;
        return;
    }
    Words words(WORDS[number]);
    take(model->top, number, words.data());
    if (port.partner >= 0) {
        model->ports[port.partner].queue.push_back({model->cycle + 1, words});
        return;
    }
    for (Memory &memory : model->memories)
        if (number == memory.aw || number == memory.w || number == memory.ar)
            remember(model, memory, number, words);
}

// One cycle. Says whether a beat moved outside of queues.
bool step(Model *model) {
    offer(model);
    model->top->eval();
    bool moved = false;
    for (int i = 0; i < PORTS; i++) {
        Port &port = model->ports[i];
        bool other = theirs(model->top, i);
        if (port.offered && other) {
            if (!READS[i]) {
                arrive(model, i);
            } else {
                port.offered = false;
                if (port.queued) port.queue.pop_front();
            }
            port.done += !port.queued;
            if (port.moved++ == 0) port.first = model->cycle - model->since;
            port.latest = model->cycle - model->since;
            moved = true;
        } else if (port.offered) {
            (READS[i] ? port.waits : port.starved)++;
        } else if (other) {
            (READS[i] ? port.starved : port.waits)++;
        }
    }
    tick(model->top);
    model->cycle++;
    return moved;
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
    Model *model = (Model *)handle;
    for (int i = 0; i < PORTS; i++) {
        model->ports[i].queue.clear();
        model->ports[i].offered = false;
        mine(model->top, i, false);
    }
    for (Memory &memory : model->memories) memory.writes.clear();
    model->top->CLOCK = 0;
    HOLD_RESET(model->top, true);
    for (int i = 0; i < 3; i++) {
        model->top->eval();
        tick(model->top);
    }
    HOLD_RESET(model->top, false);
    model->top->eval();
}

void lichen_set(void *handle, int index, unsigned long long v) {
    Vtop *top = ((Model *)handle)->top;
    switch (index) { SETTINGS }
}

// Join an output to an input by a queue of unlimited depth.
void lichen_loop(void *handle, int output, int input) {
    Model *model = (Model *)handle;
    model->ports[output].queued = model->ports[input].queued = true;
    model->ports[output].partner = input;
}

// Put a memory behind five ports; its answers come so many cycles later.
void lichen_memory(void *handle, int aw, int w, int b, int ar, int r, long long latency) {
    Model *model = (Model *)handle;
    for (int i : {aw, w, b, ar, r}) model->ports[i].queued = true;
    Memory memory;
    memory.aw = aw, memory.w = w, memory.b = b, memory.ar = ar, memory.r = r;
    memory.latency = latency;
    model->memories.push_back(memory);
}

// Let memories reach the caller's bytes from this address on.
void lichen_region(void *handle, unsigned long long base, void *bytes, unsigned long long size) {
    ((Model *)handle)->regions.push_back({base, size, (uint8_t *)bytes});
}

void lichen_chance(void *handle, int port, uint32_t chance) {
    ((Model *)handle)->ports[port].chance = chance;
}

// Begin statistics anew, and random choices from a seed.
void lichen_begin(void *handle, unsigned long long seed) {
    Model *model = (Model *)handle;
    model->seed = seed;
    model->since = model->cycle;
    for (Port &port : model->ports)
        port.first = port.latest = port.waits = port.starved = port.moved = 0;
}

// Let a port give or take so many beats; what was left of a transfer is dropped.
void lichen_feed(void *handle, int number, uint32_t *data, long long wanted, int last) {
    Model *model = (Model *)handle;
    Port &port = model->ports[number];
    port.data = data, port.wanted = wanted, port.done = 0, port.last = last;
    if (!port.queued && port.offered) {
        port.offered = false;
        mine(model->top, number, false);
    }
}

// Give the beats of a port's transfer that have moved, and whether it is complete.
long long lichen_done(void *handle, int number, int *complete) {
    Port &port = ((Model *)handle)->ports[number];
    *complete = port.done >= port.wanted;
    return port.done;
}

// Run until the transfers of the watched ports, if any, are complete: 0; for `limit` cycles: 1; until no
// beat has moved for `patience` cycles: 2. Adds the cycles to *cycles.
int lichen_advance(void *handle, const int *watched, int count, long long limit,
                   long long patience, long long *cycles) {
    Model *model = (Model *)handle;
    long long quiet = 0, start = model->cycle;
    int result = -1;
    while (result < 0) {
        result = count ? 0 : -1;
        for (int i = 0; i < count; i++) {
            Port &port = model->ports[watched[i]];
            if (port.done < port.wanted) result = -1;
        }
        if (result < 0 && model->cycle - start >= limit) result = 1;
        if (result < 0 && quiet > patience) result = 2;
        if (result < 0) quiet = step(model) ? 0 : quiet + 1;
    }
    for (int i = 0; i < PORTS; i++)
        if (!READS[i]) mine(model->top, i, false);
        else if (!model->ports[i].offered) mine(model->top, i, false);
    model->top->eval();
    *cycles += model->cycle - start;
    return result;
}

// Per port: beats, first cycle, last cycle, cycles of valid without ready, ready without valid.
void lichen_stats(void *handle, long long *stats) {
    for (Port &port : ((Model *)handle)->ports) {
        const long long row[] = {port.moved, port.first, port.latest, port.waits, port.starved};
        std::memcpy(stats, row, sizeof row);
        stats += 5;
    }
}
}
