// What the binding files share.
#pragma once
#include <string>

#include "kernel.h"
#include "tensor.h"

namespace mtk {

// Calls the kernel for the device of `tensor`; cuda is null in a build without CUDA.
template <class Args>
void launch(const Argument& argument, const TensorView& tensor, Args& args, Kernel<Args> cpu,
            Kernel<Args> cuda) {
  args.device = tensor.device.device_id;
  args.stream = current_stream(tensor.device);
  const bool on_cuda = tensor.device.device_type == kDLCUDA;
  if (!tensor.on_cpu() && !(on_cuda && cuda)) {
    refuse(Refusal::not_implemented, argument,
           cuda ? "be on the CPU or a CUDA device" : "be on the CPU (a build without CUDA kernels)",
           tensor.attribute("device"));
  }
  py::gil_scoped_release no_gil;
  (on_cuda ? cuda : cpu)(args);
}

void bind_ema(py::module_& m);
void bind_slots(py::module_& m);
void bind_losses(py::module_& m);
void bind_targets(py::module_& m);
void bind_augment(py::module_& m);

}  // namespace mtk
