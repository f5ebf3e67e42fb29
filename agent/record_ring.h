// A ring of records: the newest events of one child, each as it goes on the wire.
//
//   tail                                                head         end (staged)
//    | record | record | ... | record | pad | record ... | record |   |
//      oldest: the next to be evicted          newest     written, not yet visible
//
// A position is an offset in the endless sequence of all bytes ever written; it lies at
// position % size of the memory. Positions only grow: a reader whose position is before the tail
// has missed something. A record is 8-aligned and never wraps; what is left at the memory's end is
// a pad. All state is plain data without pointers, in memory that outlives the process where the
// ring's bytes do: Recover() mends what a kill has left half done.
//
// Thread: none of its own, see Log. What lies in [tail, head) does not change; what is staged
// behind head is the writer's.
#ifndef AGENT_RECORD_RING_H_
#define AGENT_RECORD_RING_H_

#include <cstddef>
#include <cstdint>

#include "agent/event_encoding.h"

namespace deka::agent {

// What stands before an event's entry: all that filters, cuts and places need without decoding it.
struct Record {
  uint32_t entry_bytes = 0;    // behind this
  uint32_t payload_bytes = 0;  // the last of them
  int64_t sequence = 0;
  int64_t child_sequence = 0;
  int64_t time_us = 0;      // since 1970
  uint32_t back_bytes = 0;  // to the beginning of the record before this
  uint8_t kind = 0;         // v1::EventKind; kPad: skip the rest of the memory
  uint8_t direction = 0;    // v1::Direction
  PayloadField payload_field = PayloadField::kNone;
  uint8_t unused = 0;

  const char* entry() const { return reinterpret_cast<const char*>(this + 1); }
  char* entry() { return reinterpret_cast<char*>(this + 1); }
  // With this, aligned.
  uint64_t bytes() const { return BytesFor(entry_bytes); }

  static constexpr uint64_t BytesFor(uint64_t entry_bytes) {
    return (sizeof(Record) + entry_bytes + 7) / 8 * 8;
  }
  static constexpr uint8_t kPad = 0;
};
static_assert(sizeof(Record) == 40);

class RecordRing {
 public:
  // What is visible.
  struct Head {
    uint64_t head = 0;
    uint64_t newest = 0;  // where the newest record begins
    int64_t newest_sequence = 0;
    int64_t newest_child_sequence = 0;
  };

  struct Control : Head {
    uint64_t tail = 0;
    // Of the newest record that is not here any more; 0: all are here.
    int64_t evicted_child_sequence = 0;
    int64_t evicted_sequence = 0;
    int64_t evicted_time_us = 0;
    int64_t first_sequence = 0;  // of the first record that ever was; 0: none yet
  };

  // `size` is a multiple of 8, `memory` 8-aligned; both it and `control` are the caller's, and zero
  // for a new ring.
  RecordRing(Control& control, char* memory, uint64_t size)
      : control_(&control), memory_(memory), size_(size) {}

  // Goes on with what another process has left. False if it cannot be what a ring leaves.
  [[nodiscard]] bool Recover();

  const Control& control() const { return *control_; }
  uint64_t size() const { return size_; }
  bool empty() const { return control_->tail == control_->head; }
  uint64_t events() const {
    return static_cast<uint64_t>(control_->newest_child_sequence -
                                 control_->evicted_child_sequence);
  }

  // --- Reading. ---

  // Where the record at or behind `position` begins: behind a pad, if there is one. `position` lies
  // in [tail, head).
  uint64_t Settle(uint64_t position) const;
  // The record that begins at `position`, as Settle gives it.
  const Record& At(uint64_t position) const {
    return *reinterpret_cast<const Record*>(memory_ + position % size_);
  }

  // --- Writing. ---

  // Where a record of `bytes` goes if what is written ends at `end`: there, or behind a pad.
  uint64_t BeginFor(uint64_t end, uint64_t bytes) const;
  // The room of that record, with a pad before it if there is one. What lies in it must be evicted.
  Record& Prepare(uint64_t end, uint64_t begin);
  // What is visible when everything up to `end` is, of which the record at `newest` is the last.
  Head HeadFor(uint64_t end, uint64_t newest) const;
  // Makes it visible.
  void Publish(const Head& head);
  // Forgets the oldest record. The ring is not empty.
  void Evict();
  // An empty ring goes on at `position`, not before head.
  void Skip(uint64_t position);

 private:
  Control* control_;
  char* memory_;
  uint64_t size_;
};

}  // namespace deka::agent

#endif  // AGENT_RECORD_RING_H_
