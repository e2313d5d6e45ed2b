// Runs a kernel's threads as fibers on one CPU thread: barriers, shuffles, shared memory, clusters. A fiber
// runs until it has to wait for others; which one runs next is drawn at random, so that what needs a barrier
// and has none shows. A wait that nobody ends is reported.
#pragma once
#include <cstddef>
#include <cstring>
#include <functional>

namespace mtk_emulator {

struct Index {
  unsigned x = 1, y = 1, z = 1;
  Index() = default;
  Index(unsigned x) : x(x) {}
};

struct Device {
  int multiprocessors, shared, major;  // shared: bytes of a block
};
Device& device();

struct Grid {
  Index blocks, threads;
  unsigned cluster;
};

struct Fiber {
  Index thread, block;
};

const Grid& grid();
const Fiber& fiber();
void wait_for_block();
void wait_for_cluster();
void* shared_of(void* mine, unsigned rank);
long launches();
// Puts 8 bytes of a lane where its warp's other lanes see them, once all have come; gives the other lane's.
void exchange_bits(unsigned char (&bits)[8], int lanes);
// False where the launch is refused: more threads or shared memory than the device has, blocks that no
// cluster fits.
bool run(const Grid& grid, size_t shared, const std::function<void()>& kernel);

template <class T>
T exchange(T x, int lanes) {
  static_assert(sizeof(T) <= 8, "a shuffle moves one word or two");
  unsigned char bits[8] = {};
  std::memcpy(bits, &x, sizeof(T));
  exchange_bits(bits, lanes);
  std::memcpy(&x, bits, sizeof(T));
  return x;
}

}  // namespace mtk_emulator
