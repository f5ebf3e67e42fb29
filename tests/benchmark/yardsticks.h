// What a user would otherwise have, written as well as can be.
//
// Thread: one.
#ifndef TESTS_BENCHMARK_YARDSTICKS_H_
#define TESTS_BENCHMARK_YARDSTICKS_H_

#include <cstddef>
#include <cstdint>
#include <functional>

#include "tests/benchmark/row.h"

namespace deka::benchmark {

// Seconds of one round trip of 32 bytes and a line break over a socket pair: this process waits
// with epoll, reads and writes; the child (plain_child) does the same, or only reads and writes,
// blocking. No framing, no validation.
enum class Echo { kEpoll, kBlocking };
SideOr MakeRawPingPong(int64_t round_trips, Echo echo);

// Messages a second from a child (plain_child, blocks of 64 KiB or one message) to one loop of a
// blocking read, memchr for the line's end, simdjson's parser to validate it, and one memcpy, in
// this process.
SideOr MakeReadLoop(int64_t messages, size_t bytes);

// Messages a second of Node's own fork(): a parent and a child of Node, default serialization. The
// child sends as its socket takes them; the parent's listener counts. Parent and child also make
// text of values and values of text, which the core leaves to its user.
SideOr MakeNodeStream(int64_t messages, size_t bytes);

// Events a second of a bare gRPC stream from another process to this one: its server writes
// responses that are encoded before, of as many events each as `events_per_response` says, from one
// completion queue and one write at a time; the client reads with the generated code and looks at
// each event. No child, no agent.
SideOr MakeBareGrpcStream(int64_t messages, std::function<int64_t()> events_per_response);

// Seconds of one round trip of a 32 byte message over one gRPC stream in both directions, two
// processes, a completion queue with one thread at each end.
SideOr MakeBareGrpcEcho(int64_t round_trips);

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_YARDSTICKS_H_
