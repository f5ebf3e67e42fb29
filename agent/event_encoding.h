// Events as bytes on the wire.
//
//   entry := tag and length of EventBatch.events | head | payload field
//   head  := sequence, child_sequence, time, child, kind       (fields 1 to 9, or 16 to 20)
//   payload field := tag, length, payload                      (field 13 to 15; not all kinds have
//   it)
//
// An entry is what a log holds and what an observer is sent: entries behind one another are an
// encoded EventBatch. The payload stands last, so an entry that is cut is the same head with a
// shorter payload. Protobuf would write the same bytes; this writes them at once where they stay,
// around a payload that is never copied before.
#ifndef AGENT_EVENT_ENCODING_H_
#define AGENT_EVENT_ENCODING_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "deka/bridge/v1/event.pb.h"

namespace deka::agent {

namespace v1 = ::deka::bridge::v1;

inline constexpr size_t kVarintBytesMax = 10;

constexpr size_t VarintBytes(uint64_t value) {
  return (static_cast<size_t>(64 - __builtin_clzll(value | 1)) + 6) / 7;
}

inline char* PutVarint(uint64_t value, char* out) {
  while (value >= 0x80) {
    *out++ = static_cast<char>(value | 0x80);
    value >>= 7;
  }
  *out++ = static_cast<char>(value);
  return out;
}

// The number of the field of v1::Event that holds the payload.
enum class PayloadField : uint8_t { kNone = 0, kText = 13, kJson = 14, kRaw = 15 };

// What stands in an entry.
struct EventFields {
  int64_t sequence = 0;
  int64_t child_sequence = 0;
  int64_t time_us = 0;  // since 1970
  std::string_view child = {};
  int kind_field = 0;          // the member of v1::Event.kind: v1::Event::kFromChild...
  std::string_view kind = {};  // that member's encoded message
  PayloadField payload_field = PayloadField::kNone;
  std::string_view payload = {};  // UTF-8 unless the field is kRaw
};

size_t EntryBytes(const EventFields& fields);

// Writes EntryBytes() bytes and returns their end.
char* EncodeEntry(const EventFields& fields, char* out);

// How many entries this process has encoded.
uint64_t EncodedEntries();

// Bytes that an entry's head may have, for any payload.
inline constexpr size_t kHeadBytesMax = 48 << 10;

v1::EventKind KindOf(int kind_field);
v1::Direction DirectionOf(int kind_field);

// The messages of the two kinds that come by the million, encoded.
class EncodedKind {
 public:
  static EncodedKind FromChild(v1::Dialect dialect, uint64_t size_bytes, bool internal);
  static EncodedKind Output(v1::Output::Stream stream, uint64_t size_bytes, bool partial,
                            bool unterminated);

  std::string_view bytes() const { return {bytes_, size_}; }

 private:
  void Put(int field, uint64_t value);

  char bytes_[4 * (1 + kVarintBytesMax)];
  size_t size_ = 0;
};

// The first bytes of an entry, up to its payload, changed to announce a payload of `payload_bytes`.
// `head` is an entry without its payload: tag, length, head, and the payload field's tag and length
// for `whole_payload_bytes`.
std::string HeadForPayload(std::string_view head, size_t whole_payload_bytes, size_t payload_bytes);

}  // namespace deka::agent

#endif  // AGENT_EVENT_ENCODING_H_
