#include "agent/event_encoding.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "deka/bridge/v1/bridge_service.pb.h"

namespace deka::agent {
namespace {

std::atomic<uint64_t> encoded_entries = 0;

constexpr int kVarint = 0, kLengthDelimited = 2;

constexpr uint32_t Tag(int field, int type) { return static_cast<uint32_t>(field) << 3 | type; }

constexpr char kEntryTag =
    static_cast<char>(Tag(v1::EventBatch::kEventsFieldNumber, kLengthDelimited));

char* PutTag(int field, int type, char* out) { return PutVarint(Tag(field, type), out); }

size_t LengthDelimitedBytes(int field, size_t size) {
  return VarintBytes(Tag(field, kLengthDelimited)) + VarintBytes(size) + size;
}

char* PutLengthDelimited(int field, std::string_view bytes, char* out) {
  out = PutTag(field, kLengthDelimited, out);
  out = PutVarint(bytes.size(), out);
  return std::copy(bytes.begin(), bytes.end(), out);
}

// google.protobuf.Timestamp, both fields numbered below 16.
struct Time {
  explicit Time(int64_t time_us)
      : seconds(static_cast<uint64_t>(time_us / 1'000'000)),
        nanos(static_cast<uint64_t>(time_us % 1'000'000 * 1000)),
        size((seconds ? 1 + VarintBytes(seconds) : 0) + (nanos ? 1 + VarintBytes(nanos) : 0)) {}

  uint64_t seconds, nanos;
  size_t size;
};

size_t EventBytes(const EventFields& fields) {
  size_t size = 1 + VarintBytes(static_cast<uint64_t>(fields.sequence)) + 1 +
                VarintBytes(static_cast<uint64_t>(fields.child_sequence)) +
                LengthDelimitedBytes(v1::Event::kTimeFieldNumber, Time(fields.time_us).size) +
                LengthDelimitedBytes(v1::Event::kChildFieldNumber, fields.child.size()) +
                LengthDelimitedBytes(fields.kind_field, fields.kind.size());
  if (fields.payload_field != PayloadField::kNone) {
    size += LengthDelimitedBytes(static_cast<int>(fields.payload_field), fields.payload.size());
  }
  return size;
}

}  // namespace

size_t EntryBytes(const EventFields& fields) {
  const size_t event_bytes = EventBytes(fields);
  return 1 + VarintBytes(event_bytes) + event_bytes;
}

uint64_t EncodedEntries() { return encoded_entries.load(std::memory_order_relaxed); }

char* EncodeEntry(const EventFields& fields, char* out) {
  encoded_entries.fetch_add(1, std::memory_order_relaxed);
  *out++ = kEntryTag;
  out = PutVarint(EventBytes(fields), out);
  out = PutTag(v1::Event::kSequenceFieldNumber, kVarint, out);
  out = PutVarint(static_cast<uint64_t>(fields.sequence), out);
  out = PutTag(v1::Event::kChildSequenceFieldNumber, kVarint, out);
  out = PutVarint(static_cast<uint64_t>(fields.child_sequence), out);
  const Time time(fields.time_us);
  out = PutTag(v1::Event::kTimeFieldNumber, kLengthDelimited, out);
  out = PutVarint(time.size, out);
  if (time.seconds) out = PutVarint(time.seconds, PutTag(1, kVarint, out));
  if (time.nanos) out = PutVarint(time.nanos, PutTag(2, kVarint, out));
  out = PutLengthDelimited(v1::Event::kChildFieldNumber, fields.child, out);
  out = PutLengthDelimited(fields.kind_field, fields.kind, out);
  if (fields.payload_field != PayloadField::kNone) {
    out = PutLengthDelimited(static_cast<int>(fields.payload_field), fields.payload, out);
  }
  return out;
}

v1::EventKind KindOf(int kind_field) {
  switch (kind_field) {
    case v1::Event::kFromChild:
    case v1::Event::kToChild:
      return v1::EVENT_KIND_MESSAGE;
    case v1::Event::kOutput:
      return v1::EVENT_KIND_OUTPUT;
    case v1::Event::kError:
      return v1::EVENT_KIND_ERROR;
    case v1::Event::kUndelivered:
      return v1::EVENT_KIND_UNDELIVERED;
    case v1::Event::kStarted:
      return v1::EVENT_KIND_STARTED;
    case v1::Event::kSignalled:
      return v1::EVENT_KIND_SIGNALLED;
    case v1::Event::kDisconnected:
      return v1::EVENT_KIND_DISCONNECTED;
    case v1::Event::kExited:
      return v1::EVENT_KIND_EXITED;
    case v1::Event::kClosed:
      return v1::EVENT_KIND_CLOSED;
  }
  return v1::EVENT_KIND_UNSPECIFIED;
}

v1::Direction DirectionOf(int kind_field) {
  if (kind_field == v1::Event::kFromChild) return v1::DIRECTION_FROM_CHILD;
  if (kind_field == v1::Event::kToChild) return v1::DIRECTION_TO_CHILD;
  return v1::DIRECTION_UNSPECIFIED;
}

EncodedKind EncodedKind::FromChild(v1::Dialect dialect, uint64_t size_bytes, bool internal) {
  EncodedKind kind;
  kind.Put(v1::MessageFromChild::kDialectFieldNumber, dialect);
  kind.Put(v1::MessageFromChild::kSizeBytesFieldNumber, size_bytes);
  kind.Put(v1::MessageFromChild::kInternalFieldNumber, internal);
  return kind;
}

EncodedKind EncodedKind::Output(v1::Output::Stream stream, uint64_t size_bytes, bool partial,
                                bool unterminated) {
  EncodedKind kind;
  kind.Put(v1::Output::kStreamFieldNumber, stream);
  kind.Put(v1::Output::kSizeBytesFieldNumber, size_bytes);
  kind.Put(v1::Output::kPartialFieldNumber, partial);
  kind.Put(v1::Output::kUnterminatedFieldNumber, unterminated);
  return kind;
}

void EncodedKind::Put(int field, uint64_t value) {
  if (value == 0) return;
  char* const begin = bytes_ + size_;
  size_ += static_cast<size_t>(PutVarint(value, PutTag(field, kVarint, begin)) - begin);
}

std::string HeadForPayload(std::string_view head, size_t whole_payload_bytes,
                           size_t payload_bytes) {
  // Behind the entry's tag stands the event's length, before the payload its own.
  const size_t event_bytes_begin = 1;
  size_t event_begin = event_bytes_begin;
  while (head[event_begin] & 0x80) ++event_begin;
  ++event_begin;
  const std::string_view kept =
      head.substr(event_begin, head.size() - event_begin - VarintBytes(whole_payload_bytes));

  std::string result(1 + 2 * kVarintBytesMax + kept.size(), '\0');
  char* out = result.data();
  *out++ = head[0];
  out = PutVarint(kept.size() + VarintBytes(payload_bytes) + payload_bytes, out);
  std::memcpy(out, kept.data(), kept.size());
  out = PutVarint(payload_bytes, out + kept.size());
  result.resize(static_cast<size_t>(out - result.data()));
  return result;
}

}  // namespace deka::agent
