// That no two tensors of a plan that is written lie in the same memory.
#pragma once
#include <vector>

#include "pairs.h"

namespace mtk {

// Refuses teachers that share memory with another tensor, and takes out what is listed twice: a tied weight
// moves once. owners: the pair of each row. What has been found good before is known by its addresses.
void settle(Plan& plan, const PairLists& lists, const std::vector<Py_ssize_t>& owners);

}  // namespace mtk
