// The scheduler of emulator.h, and the Python module: the bindings of the losses, with CUDA kernels for CPU
// tensors.
#include "emulator.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "bindings.h"

namespace mtk {
extern unsigned char shared_memory[];  // of the block that runs
alignas(16) unsigned char shared_memory[256 * 1024];
}  // namespace mtk

namespace mtk_emulator {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr unsigned kWarp = 32;
constexpr int kPoison = 0xff;  // NaN in every format

// Who comes to a barrier: the wait of generation g is over when all have come to it.
struct Barrier {
  unsigned size = 0, arrived = 0;
  unsigned long generation = 0;
};

struct Thread : Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Barrier* waits = nullptr;  // until its generation is past `since`
  unsigned long since = 0, shuffles = 0;
  bool done = false;
};

struct Block {
  std::vector<unsigned char> shared;
  Barrier barrier;
  std::vector<Barrier> warps;
  std::vector<unsigned char> slots;  // of shuffles: [2, threads, 8], two sets in turn
  std::vector<Thread> threads;
};

struct State {
  Grid grid;
  std::vector<Block> blocks;  // of the cluster that runs
  Barrier cluster;
  unsigned running = 0;  // the block whose shared memory is in place
  Thread* current = nullptr;
  ucontext_t scheduler;
  const std::function<void()>* kernel = nullptr;
  std::minstd_rand random{1};
  long launches = 0;
  Device device{4, 64 * 1024, 9};
};

State& state() {
  static State state;
  return state;
}

void wait(Barrier& barrier) {
  State& s = state();
  Thread& thread = *s.current;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0, ++barrier.generation;
    return;
  }
  thread.waits = &barrier, thread.since = barrier.generation;
  swapcontext(&thread.context, &s.scheduler);
}

void enter() {
  State& s = state();
  (*s.kernel)();
  s.current->done = true;
  swapcontext(&s.current->context, &s.scheduler);
}

void start(Block& block, unsigned index, const Grid& grid, size_t shared) {
  const unsigned threads = grid.threads.x;
  block.shared.assign(shared, kPoison);
  block.barrier.size = threads;
  block.warps.assign(threads / kWarp, Barrier{kWarp, 0, 0});
  block.slots.assign(2 * threads * 8, 0);
  block.threads = std::vector<Thread>(threads);
  for (unsigned t = 0; t < threads; ++t) {
    Thread& thread = block.threads[t];
    thread.thread.x = t, thread.block.x = index;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
  }
}

// Runs every fiber of a block that need not wait; whether there was one.
bool advance(State& s, unsigned rank) {
  Block& block = s.blocks[rank];
  s.running = rank;
  std::memcpy(mtk::shared_memory, block.shared.data(), block.shared.size());
  const unsigned count = static_cast<unsigned>(block.threads.size()),
                 first = static_cast<unsigned>(s.random() % count);
  const bool backwards = s.random() % 2;
  bool any = false;
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = block.threads[(first + (backwards ? count - i : i)) % count];
    if (thread.done || (thread.waits && thread.waits->generation == thread.since)) continue;
    thread.waits = nullptr, s.current = &thread, any = true;
    swapcontext(&s.scheduler, &thread.context);
  }
  std::memcpy(block.shared.data(), mtk::shared_memory, block.shared.size());
  return any;
}

void run_cluster(State& s, unsigned first, size_t shared) {
  s.blocks = std::vector<Block>(s.grid.cluster);
  for (unsigned rank = 0; rank < s.grid.cluster; ++rank) start(s.blocks[rank], first + rank, s.grid, shared);
  s.cluster = {s.grid.cluster * s.grid.threads.x, 0, 0};
  for (bool any = true; any;) {
    any = false;
    const unsigned turn = static_cast<unsigned>(s.random());
    for (unsigned rank = 0; rank < s.grid.cluster; ++rank) any |= advance(s, (turn + rank) % s.grid.cluster);
  }
  for (const Block& block : s.blocks) {
    for (const Thread& thread : block.threads) {
      if (thread.done) continue;
      std::fprintf(stderr, "emulator: thread %u of block %u waits for ever\n", thread.thread.x,
                   thread.block.x);
      std::abort();
    }
  }
}

}  // namespace

Device& device() { return state().device; }
const Grid& grid() { return state().grid; }
const Fiber& fiber() { return *state().current; }
long launches() { return state().launches; }
void wait_for_block() { wait(state().blocks[state().running].barrier); }
void wait_for_cluster() { wait(state().cluster); }

void* shared_of(void* mine, unsigned rank) {
  State& s = state();
  if (rank == s.running) return mine;
  return s.blocks[rank].shared.data() + (static_cast<unsigned char*>(mine) - mtk::shared_memory);
}

void exchange_bits(unsigned char (&bits)[8], int lanes) {
  State& s = state();
  Block& block = s.blocks[s.running];
  Thread& thread = *s.current;
  const unsigned me = thread.thread.x, other = me ^ static_cast<unsigned>(lanes);
  unsigned char* const slots = block.slots.data() + thread.shuffles++ % 2 * block.threads.size() * 8;
  std::memcpy(slots + me * 8, bits, 8);
  wait(block.warps[me / kWarp]);
  std::memcpy(bits, slots + other * 8, 8);
}

bool run(const Grid& grid, size_t shared, const std::function<void()>& kernel) {
  State& s = state();
  if (grid.threads.x % kWarp || shared > static_cast<size_t>(s.device.shared) || grid.blocks.x % grid.cluster)
    return false;
  if (grid.cluster > 1 && s.device.major < 9) return false;
  s.grid = grid, s.kernel = &kernel, ++s.launches;
  const unsigned clusters = grid.blocks.x / grid.cluster, turn = static_cast<unsigned>(s.random());
  for (unsigned i = 0; i < clusters; ++i) run_cluster(s, (turn + i) % clusters * grid.cluster, shared);
  return true;
}

}  // namespace mtk_emulator

PYBIND11_MODULE(cuda_emulator, m) {
  mtk::bind_losses(m);
  m.def("set_device", [](int multiprocessors, int shared, int major) {
    mtk_emulator::device() = {multiprocessors, shared, major};
  });
  m.def("launches", &mtk_emulator::launches);
}
