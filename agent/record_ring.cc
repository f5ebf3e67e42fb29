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

void RecordRing::Publish(uint64_t end, uint64_t newest) {
  const Record& record = At(newest);
  if (control_.first_sequence == 0) control_.first_sequence = At(Settle(control_.head)).sequence;
  control_.newest = newest;
  control_.newest_sequence = record.sequence;
  control_.newest_child_sequence = record.child_sequence;
  control_.head = end;
}

void RecordRing::Evict() {
  const uint64_t begin = Settle(control_.tail);
  const Record& record = At(begin);
  control_.evicted_sequence = record.sequence;
  control_.evicted_child_sequence = record.child_sequence;
  control_.evicted_time_us = record.time_us;
  control_.tail = begin + record.bytes();
}

void RecordRing::Skip(uint64_t position) {
  control_.head = position;
  control_.tail = position;
}

}  // namespace deka::agent
