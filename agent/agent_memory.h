// What an agent knows of all its children together, and must outlive it: one numbering, and the
// commit that keeps it in step with what each child's memory holds.
//
// Plain data, in heap or mapped from a file that successors map too.
//
// A commit makes the events of a batch, all of one child, numbers, and at the same time moves how
// far the child's streams were told (ipc::Progress). It is decided by one store:
//
//   redo = absolute values, redo.last = s | next_sequence = s + 1 | child's memory = redo's values,
//   head last | redo.last = 0
//
// Killed before the store, nothing has happened: the records behind the head are garbage, and what
// they tell is told again. Killed behind it, a successor stores redo's values once more. redo.last
// must be cleared: progress moves without a commit too, and a redo of last week would turn it back.
//
// Against SIGKILL only the compiler's order matters: a successor begins when the kernel has taken
// the process down. The stores are release stores.
//
// Thread: the loop's.
#ifndef AGENT_AGENT_MEMORY_H_
#define AGENT_AGENT_MEMORY_H_

#include <cstdint>

#include "agent/record_ring.h"
#include "ipc/stream_memory.h"

namespace deka::agent {

// What a commit moves in the memory of one child.
struct ChildCommit {
  ipc::Progress progress;
  RecordRing::Head head;

  // The same again if it was cut short.
  void ApplyTo(ipc::Progress& told, RecordRing& ring) const {
    told = progress;
    ring.Publish(head);
  }
};

struct AgentMemory {
  static constexpr uint64_t kMagic = 0x746e6567'616b6564u;  // "dekagent"
  static constexpr uint64_t kVersion = 1;                   // of everything that is mapped

  uint64_t magic = kMagic;
  uint64_t version = kVersion;
  int64_t epoch = 0;
  uint64_t seed = 0;        // secret: of fingerprints
  int64_t time_us = 0;      // of the newest event
  uint64_t configured = 0;  // the configuration's children are forked
  // Of all children that are forgotten: their newest event.
  int64_t forgotten_through = 0;
  int64_t forgotten_time_us = 0;

  alignas(64) int64_t next_sequence = 1;  // the commit word

  struct Redo {
    int64_t last = 0;    // sequence of the batch's last event; 0: there is nothing to do again
    uint64_t child = 0;  // its number
    ChildCommit values;
  };
  alignas(64) Redo redo;
};

}  // namespace deka::agent

#endif  // AGENT_AGENT_MEMORY_H_
