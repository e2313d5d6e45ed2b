// The arguments of ema_update beside the tensors: decays, and the options that mtkernels/ops/ema.py declares.
#pragma once
#include "ema_update.h"
#include "tensor.h"

namespace mtk {

// How many averages `decay` is for: its length where it is a list or a tuple, else 1.
int averages_of(const py::object& decay);

// A field of the options, which must have it.
py::object option(const py::object& options, const char* name);

// A schedule's decay at a step, which counts from 1.
double decay_at(const py::object& schedule, const py::object& step);

// Checks them and fills all of args but the plan, the device and the stream. weights: a tensor of the plan.
void read_ema_arguments(const py::object& decay, const py::object& options, const TensorView& weights,
                        EmaUpdate& args);

}  // namespace mtk
