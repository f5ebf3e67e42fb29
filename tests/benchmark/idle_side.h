// The memory of channels that have nothing to say.
//
// Thread: one.
#ifndef TESTS_BENCHMARK_IDLE_SIDE_H_
#define TESTS_BENCHMARK_IDLE_SIDE_H_

#include "tests/benchmark/row.h"

namespace deka::benchmark {

// Bytes of a parent (idle_parent, which embeds an agent::Agent) for each of `channels` channels
// that have carried a message either way: what its resident set has grown by. What the kernel takes
// is not counted, for page tables and sockets, nor any process of a child.
SideOr MakeIdleChannels(int channels);

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_IDLE_SIDE_H_
