// The shape of every host entry: one struct of arguments. An op's header declares `<op>_cpu` and `<op>_cuda`;
// the latter is a null pointer in a build without CUDA.
#pragma once

namespace mtk {

template <class Args>
using Kernel = void (*)(const Args&);

}  // namespace mtk
