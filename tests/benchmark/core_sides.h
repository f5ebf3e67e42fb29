// The in-process core, measured.
//
// Thread: one.
#ifndef TESTS_BENCHMARK_CORE_SIDES_H_
#define TESTS_BENCHMARK_CORE_SIDES_H_

#include <cstddef>
#include <cstdint>

#include "tests/benchmark/row.h"

namespace deka::benchmark {

// Seconds of one round trip of 32 bytes: this process' ipc::ChildProcess and a child with
// ipc::Process, one message under way. Both ends validate what they send and what they read.
SideOr MakeCorePingPong(int64_t round_trips);

// Messages a second from a child with ipc::Process to this process' ipc::ChildProcess, as many
// under way as the socket takes. Both ends validate. The listener only counts: what a program does
// with a message is not measured.
SideOr MakeCoreStream(int64_t messages, size_t bytes);

// The same from a child that costs nothing (plain_child) into an agent::Agent in this process: each
// message ends in the child's log, which holds the default 4 MiB.
SideOr MakeEmbeddedStream(int64_t messages, size_t bytes);

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_CORE_SIDES_H_
