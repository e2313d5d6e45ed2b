// ema_update: teacher <- decay * teacher + (1 - decay) * student, over any number of tensors and up to
// kMaxAverages teachers of one student, in one launch. Computed as teacher + (1 - decay) * (student -
// teacher), or from the student's side where decay < 1/2, so that equal weights stay equal and decay = 0
// gives the student. fp32 accumulator (fp64 where the teacher or the student is fp64). Rounded once: to
// nearest, at random (philox.h), or into two parts (low_part.h).
#pragma once
#include "decay.h"
#include "kernel.h"
#include "philox.h"
#include "plan.h"

namespace mtk {

struct EmaUpdate {
  const Plan* plan;
  Decay decays[kMaxAverages];  // one for each of the plan's averages

  // When. With a step in memory, the launch is number n = *step + 1 (where `advance`, else *step): it does
  // nothing unless n is a multiple of `every`, copies (decay 0) up to n = start, and from then on t = n -
  // start. Where `advance`, it ends by writing n to *step. A found_inf other than 0: nothing at all, n stays.
  int64_t* step;           // 0-d on the plan's device, or null
  const float* found_inf;  // likewise
  int64_t every, start;
  bool advance;

  // How bf16 and fp16 teachers are rounded that have no low-order part.
  bool stochastic;
  RandomKey random;  // its step: where there is no step in memory

  double* drift;  // [averages]: the norm of teacher - student, all averaged pairs together; or null
  int device;
  void* stream;  // cudaStream_t
};

// What a launch does, decided alike by all its threads from what lies in memory.
struct EmaStep {
  bool skipped;  // by found_inf
  bool writes;
  int64_t number;  // n
  double t;
  RandomKey random;

  MTK_INLINE explicit EmaStep(const EmaUpdate& args)
      : skipped(args.found_inf && *args.found_inf != 0.0f),
        writes(!skipped),
        number(args.step ? *args.step + (args.advance ? 1 : 0) : 0),
        t(1.0),
        random(args.random) {
    if (!args.step) return;
    writes = writes && number % args.every == 0;
    t = static_cast<double>(number - args.start);
    random.step = static_cast<uint64_t>(number);
  }
  MTK_INLINE double decay(const EmaUpdate& args, int average) const {
    return t > 0.0 ? args.decays[average].at(t) : 0.0;
  }
};

void ema_update_cpu(const EmaUpdate& args);
#if defined(MTK_CUDA)
void ema_update_cuda(const EmaUpdate& args);
#else
constexpr Kernel<EmaUpdate> ema_update_cuda = nullptr;
#endif

}  // namespace mtk
