// A copy of some records of one log that stand behind one another, for all observers that read
// there: made once, under the log's mutex, then read without it.
//
// Entries lie behind one another, so the bytes of several are those of a part of an encoded
// EventBatch. Never written once it is shared. Thread: any.
#ifndef AGENT_EVENT_BLOCK_H_
#define AGENT_EVENT_BLOCK_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "agent/record_ring.h"

namespace deka::agent {

class EventBlock {
 public:
  // The most that a block of several events holds; a larger event has a block of its own.
  static constexpr size_t kBytesMax = 64 << 10;

  struct Event {
    Record record;
    uint64_t position;  // in the ring
    size_t offset;      // of its entry, in bytes
  };

  void Add(const Record& record, uint64_t position, std::string_view entry) {
    events_.push_back({record, position, bytes_.size()});
    bytes_.append(entry);
  }
  // The rest of the last entry.
  void Extend(std::string_view bytes) { bytes_.append(bytes); }
  void Reserve(size_t bytes) { bytes_.reserve(bytes); }

  const std::vector<Event>& events() const { return events_; }
  size_t bytes() const { return bytes_.size(); }

  // The entries of events `begin` to `end`, the second not included.
  std::string_view Entries(size_t begin, size_t end) const {
    const size_t from = events_[begin].offset;
    const size_t to = end < events_.size() ? events_[end].offset : bytes_.size();
    return {bytes_.data() + from, to - from};
  }
  std::string_view Payload(const Event& event) const {
    const Record& record = event.record;
    return {bytes_.data() + event.offset + record.entry_bytes - record.payload_bytes,
            record.payload_bytes};
  }

  bool Has(uint64_t position) const { return Find(position) < events_.size(); }
  // The number of the event at `position`; events().size() if it is not here.
  size_t Find(uint64_t position) const {
    const auto found = std::lower_bound(
        events_.begin(), events_.end(), position,
        [](const Event& event, uint64_t sought) { return event.position < sought; });
    if (found == events_.end() || found->position != position) return events_.size();
    return static_cast<size_t>(found - events_.begin());
  }

 private:
  std::vector<Event> events_;
  std::string bytes_;
};

}  // namespace deka::agent

#endif  // AGENT_EVENT_BLOCK_H_
