// augment as Python sees it: every check of its arguments, for all backends.
#include <algorithm>
#include <cfloat>
#include <string>
#include <vector>

#include "augment.h"
#include "bindings.h"
#include "logits.h"

namespace mtk {
namespace {

constexpr const char* kAugment = "augment";
constexpr Range kFinite{-DBL_MAX, DBL_MAX, "be finite"};
constexpr const char* kSides = "from 1 to 1048576";

Argument augment_argument(const char* name, Py_ssize_t index = -1) { return {kAugment, name, index}; }

struct AugmentOptions {
  const py::object &index, &geometry, &size, &color, &erase, &mean, &std, &border, &fill, &dtype;
};

void check_images(const TensorView& images, Augment& args) {
  const Argument argument = augment_argument("images");
  args.bytes = images.dtype.code == kDLUInt && images.dtype.bits == 8;
  if (!args.bytes && !(images.dtype.code == kDLFloat && images.dtype.bits == 32))
    refuse(Refusal::type, argument, "be uint8 or float32", images.attribute("dtype"));
  if (images.ndim != 4)
    refuse(Refusal::value, argument, "have shape [samples, channels, height, width]", images.shape_text());
  args.channels = images.shape[1], args.height = images.shape[2], args.width = images.shape[3];
  if (args.channels < 1 || args.channels > kMaxChannels)
    refuse(Refusal::value, argument, "have 1 to 4 channels", std::to_string(args.channels));
  if (std::min(args.height, args.width) < 1 || std::max(args.height, args.width) > kMaxSide)
    refuse(Refusal::value, argument, std::string("have a height and width ") + kSides, images.shape_text());
  args.images = images.address();
  args.sample_stride = images.strides[0], args.channel_stride = images.strides[1];
  args.row_stride = images.strides[2], args.column_stride = images.strides[3];
}

void check_beside_images(const Argument& argument, const TensorView& view, const TensorView& images) {
  if (view.same_device(images)) return;
  refuse(Refusal::value, argument, "be on the device of images (" + images.attribute("device") + ")",
         view.attribute("device"));
}

// On a GPU nobody looks at the numbers: that would wait for it.
void check_rows(const py::object& index, const TensorView& images, Augment& args) {
  const int64_t samples = images.shape[0];
  args.rows = samples;
  if (index.is_none()) return;
  const Argument argument = augment_argument("index");
  const TensorView view = TensorView::of(index.ptr(), argument);
  if (!view.is_index()) refuse(Refusal::type, argument, "be int64 or int32", view.attribute("dtype"));
  if (view.ndim != 1) refuse(Refusal::value, argument, "have shape [rows]", view.shape_text());
  check_beside_images(argument, view, images);
  args.rows = view.shape[0];
  args.index = view.address(), args.wide_index = view.dtype.bits == 64, args.index_stride = view.strides[0];
  if (!view.on_cpu()) return;
  for (int64_t i = 0; i < args.rows; ++i) {
    const int64_t sample = view.integer_at(i * args.index_stride);
    if (sample < 0 || sample >= samples) {
      refuse(Refusal::value, augment_argument("index", i),
             "be one of the " + std::to_string(samples) + " images, counted from 0", std::to_string(sample));
    }
  }
}

// A contiguous tensor of numbers for each view of each row; `tail` is the shape of these.
const void* check_per_view(const char* name, const py::object& tensor, const TensorView& images, bool floats,
                           const std::vector<int64_t>& tail, Augment& args, bool sets_views = false) {
  const Argument argument = augment_argument(name);
  const TensorView view = TensorView::of(tensor.ptr(), argument);
  if (view.dtype.code != (floats ? kDLFloat : kDLInt) || view.dtype.bits != 32)
    refuse(Refusal::type, argument, floats ? "be float32" : "be int32", view.attribute("dtype"));
  const auto dims = static_cast<int32_t>(tail.size()) + 2;
  if (sets_views && view.ndim == dims) args.views = view.shape[0];
  std::string shape = sets_views ? "[views" : "[" + std::to_string(args.views);
  shape += ", " + std::to_string(args.rows);
  bool same = view.ndim == dims && view.shape[0] == args.views && view.shape[1] == args.rows;
  for (size_t i = 0; i < tail.size(); ++i) {
    shape += ", " + std::to_string(tail[i]);
    same = same && view.shape[i + 2] == tail[i];
  }
  if (!same) refuse(Refusal::value, argument, "have shape " + shape + "]", view.shape_text());
  if (!view.contiguous()) refuse(Refusal::value, argument, "be contiguous", "strides " + view.stride_text());
  check_beside_images(argument, view, images);
  return view.address();
}

void read_size(const py::object& size, Augment& args) {
  args.view_height = args.height, args.view_width = args.width;
  if (size.is_none()) return;
  const Argument argument = augment_argument("size");
  if (!PySequence_Check(size.ptr()) || PyUnicode_Check(size.ptr()) || PySequence_Size(size.ptr()) != 2)
    refuse(Refusal::type, argument, "be None or two ints, height and width", py::repr(size));
  const auto sides = py::reinterpret_borrow<py::sequence>(size);
  const std::string must = std::string("be ") + kSides;
  args.view_height = read_int(augment_argument("size", 0), py::object(sides[0]), 1, kMaxSide, must);
  args.view_width = read_int(augment_argument("size", 1), py::object(sides[1]), 1, kMaxSide, must);
}

// One number for all channels, or one for each.
void read_per_channel(const char* name, const py::object& numbers, const Range& range, double otherwise,
                      int64_t channels, double* to) {
  std::fill_n(to, kMaxChannels, otherwise);
  if (numbers.is_none()) return;
  if (!PySequence_Check(numbers.ptr()) || is_tensor(numbers.ptr()) || PyUnicode_Check(numbers.ptr())) {
    std::fill_n(to, channels,
                read_float(augment_argument(name), numbers, range, "be a number or a sequence of numbers"));
    return;
  }
  const auto list = py::reinterpret_borrow<py::sequence>(numbers);
  const auto count = static_cast<int64_t>(list.size());
  if (count != 1 && count != channels) {
    refuse(Refusal::value, augment_argument(name),
           "be one number, or " + std::to_string(channels) + ", one for each channel", py::repr(numbers));
  }
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t at = count == 1 ? 0 : c;
    to[c] = read_float(augment_argument(name, at), py::object(list[static_cast<size_t>(at)]), range);
  }
}

Border read_border(const py::object& border) {
  constexpr const char* kWords[] = {"constant", "reflect", "symmetric", "replicate"};
  for (int i = 0; PyUnicode_Check(border.ptr()) && i < 4; ++i) {
    if (py::cast<std::string>(border) == kWords[i]) return static_cast<Border>(i);
  }
  refuse(Refusal::value, augment_argument("border"), "be 'constant', 'reflect', 'symmetric' or 'replicate'",
         py::repr(border));
}

Dtype read_dtype(const py::object& dtype) {
  const std::string name = py::str(dtype);
  if (!PyUnicode_Check(dtype.ptr())) {
    if (name == "torch.float32") return Dtype::f32;
    if (name == "torch.float16") return Dtype::f16;
    if (name == "torch.bfloat16") return Dtype::bf16;
  }
  refuse(Refusal::type, augment_argument("dtype"), "be torch.float32, torch.float16 or torch.bfloat16",
         py::repr(dtype));
}

// Checks everything, and fills all but the view.
Augment read_augment(const TensorView& images, const AugmentOptions& options) {
  Augment args{};
  check_images(images, args);
  check_rows(options.index, images, args);
  args.geometry = static_cast<const float*>(
      check_per_view("geometry", options.geometry, images, true, {2, 3}, args, true));
  read_size(options.size, args);
  if (!options.color.is_none()) {
    args.color = static_cast<const float*>(
        check_per_view("color", options.color, images, true, {args.channels, args.channels + 1}, args));
  }
  if (!options.erase.is_none())
    args.erase =
        static_cast<const int32_t*>(check_per_view("erase", options.erase, images, false, {4}, args));
  read_per_channel("mean", options.mean, kFinite, 0, args.channels, args.mean);
  read_per_channel("std", options.std, kPositive, 1, args.channels, args.std);
  args.border = read_border(options.border);
  read_per_channel("fill", options.fill, kFinite, 0, args.channels, args.fill);
  args.dtype = read_dtype(options.dtype);
  return args;
}

py::tuple per_channel(const double* numbers, int64_t channels) {
  py::tuple found(channels);
  for (int64_t c = 0; c < channels; ++c) found[static_cast<size_t>(c)] = py::float_(numbers[c]);
  return found;
}

// The view's size, and mean, std and fill of each channel.
py::tuple check_augment(const py::object& images, const py::object& index, const py::object& geometry,
                        const py::object& size, const py::object& color, const py::object& erase,
                        const py::object& mean, const py::object& std, const py::object& border,
                        const py::object& fill, const py::object& dtype) {
  const TensorView view = TensorView::of(images.ptr(), augment_argument("images"));
  const Augment args =
      read_augment(view, {index, geometry, size, color, erase, mean, std, border, fill, dtype});
  return py::make_tuple(py::make_tuple(args.view_height, args.view_width),
                        per_channel(args.mean, args.channels), per_channel(args.std, args.channels),
                        per_channel(args.fill, args.channels));
}

py::object augment(const py::object& images, const py::object& index, const py::object& geometry,
                   const py::object& size, const py::object& color, bool clamp, const py::object& erase,
                   const py::object& mean, const py::object& std, const py::object& border,
                   const py::object& fill, const py::object& dtype, bool channels_last) {
  const TensorView from = TensorView::of(images.ptr(), augment_argument("images"));
  Augment args = read_augment(from, {index, geometry, size, color, erase, mean, std, border, fill, dtype});
  args.clamp = clamp, args.channels_last = channels_last;
  const auto empty = [&](auto... shape) {
    return images.attr("new_empty")(py::make_tuple(shape...), py::arg("dtype") = dtype);
  };
  const py::object memory =
      channels_last ? empty(args.views, args.rows, args.view_height, args.view_width, args.channels)
                    : empty(args.views, args.rows, args.channels, args.view_height, args.view_width);
  const TensorView to = TensorView::of(memory.ptr(), augment_argument("view"));
  args.view = to.address();
  if (to.numel() > 0) launch(augment_argument("images"), from, args, augment_cpu, augment_cuda);
  return channels_last ? memory.attr("permute")(0, 1, 4, 2, 3) : memory;
}

}  // namespace

void bind_augment(py::module_& m) {
  using namespace py::literals;
  m.def("augment", &augment, "images"_a, "index"_a, "geometry"_a, "size"_a, "color"_a, "clamp"_a, "erase"_a,
        "mean"_a, "std"_a, "border"_a, "fill"_a, "dtype"_a, "channels_last"_a);
  m.def("check_augment", &check_augment, "images"_a, "index"_a, "geometry"_a, "size"_a, "color"_a, "erase"_a,
        "mean"_a, "std"_a, "border"_a, "fill"_a, "dtype"_a);
}

}  // namespace mtk
