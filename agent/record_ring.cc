#include "agent/record_ring.h"

#include <new>

namespace deka::agent {

uint64_t RecordRing::Settle(uint64_t position) const {
  const uint64_t left = size_ - position % size_;
  if (left < sizeof(Record) || At(position).kind == Record::kPad) return position + left;
  return position;
}

uint64_t RecordRing::BeginFor(uint64_t end, uint64_t bytes) const {
  const uint64_t left = size_ - end % size_;
  return bytes <= left ? end : end + left;
}

Record& RecordRing::Prepare(uint64_t end, uint64_t begin) {
  if (begin - end >= sizeof(Record)) new (memory_ + end % size_) Record{};
  return *new (memory_ + begin % size_) Record{};
}

RecordRing::Head RecordRing::HeadFor(uint64_t end, uint64_t newest) const {
  const Record& record = At(newest);
  return {.head = end,
          .newest = newest,
          .newest_sequence = record.sequence,
          .newest_child_sequence = record.child_sequence};
}

void RecordRing::Publish(const Head& head) {
  Control& control = *control_;
  if (control.first_sequence == 0) control.first_sequence = At(Settle(control.head)).sequence;
  control.newest = head.newest;
  control.newest_sequence = head.newest_sequence;
  control.newest_child_sequence = head.newest_child_sequence;
  __atomic_store_n(&control.head, head.head, __ATOMIC_RELEASE);
}

// The first store decides: a record that counts as evicted while `tail` is still before it is
// evicted again by Recover().
void RecordRing::Evict() {
  Control& control = *control_;
  const uint64_t begin = Settle(control.tail);
  const Record& record = At(begin);
  __atomic_store_n(&control.evicted_child_sequence, record.child_sequence, __ATOMIC_RELEASE);
  control.evicted_sequence = record.sequence;
  control.evicted_time_us = record.time_us;
  __atomic_store_n(&control.tail, begin + record.bytes(), __ATOMIC_RELEASE);
}

void RecordRing::Skip(uint64_t position) {
  __atomic_store_n(&control_->tail, position, __ATOMIC_RELEASE);
  __atomic_store_n(&control_->head, position, __ATOMIC_RELEASE);
}

bool RecordRing::Recover() {
  Control& control = *control_;
  if (control.tail > control.head &&
      control.newest_child_sequence == control.evicted_child_sequence) {
    control.head = control.tail;  // in the middle of Skip()
  }
  if (control.tail > control.head || control.head - control.tail > size_ || control.tail % 8 != 0 ||
      control.head % 8 != 0) {
    return false;
  }
  // Every record is looked at: readers trust them.
  uint64_t position = control.tail;
  int64_t sequence = 0, child_sequence = control.evicted_child_sequence;
  bool evicting = false;
  while (position < control.head) {
    const uint64_t begin = Settle(position);
    if (begin >= control.head || size_ - begin % size_ < sizeof(Record)) return false;
    const Record& record = At(begin);
    if (record.entry_bytes > size_ || record.payload_bytes > record.entry_bytes ||
        record.bytes() > size_ - begin % size_ || record.bytes() > control.head - begin ||
        record.sequence <= sequence || record.kind > v1::EventKind_MAX ||
        record.direction > v1::Direction_MAX) {
      return false;
    }
    if (position == control.tail && record.child_sequence == control.evicted_child_sequence) {
      evicting = true;
    } else if (record.child_sequence != ++child_sequence) {
      return false;
    }
    if (record.back_bytes != 0 && position != control.tail && begin - record.back_bytes >= begin) {
      return false;
    }
    sequence = record.sequence;
    position = begin + record.bytes();
    if (position == control.head && begin != control.newest) return false;
  }
  if (child_sequence != control.newest_child_sequence) return false;
  if (evicting) Evict();
  return true;
}

}  // namespace deka::agent
