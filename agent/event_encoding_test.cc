#include "agent/event_encoding.h"

#include <random>
#include <string>

#include "deka/bridge/v1/bridge_service.pb.h"
#include "gtest/gtest.h"

namespace deka::agent {
namespace {

std::string Encode(const EventFields& fields) {
  std::string entry(EntryBytes(fields), '?');
  EXPECT_EQ(EncodeEntry(fields, entry.data()), entry.data() + entry.size());
  return entry;
}

// The same event as protobuf writes it.
std::string EncodeByProtobuf(const EventFields& fields) {
  v1::EventBatch batch;
  v1::Event& event = *batch.add_events();
  event.set_sequence(fields.sequence);
  event.set_child_sequence(fields.child_sequence);
  event.mutable_time()->set_seconds(fields.time_us / 1'000'000);
  event.mutable_time()->set_nanos(static_cast<int>(fields.time_us % 1'000'000 * 1000));
  event.set_child(std::string(fields.child));
  const std::string kind(fields.kind);
  switch (fields.kind_field) {
    case v1::Event::kFromChild:
      EXPECT_TRUE(event.mutable_from_child()->ParseFromString(kind));
      break;
    case v1::Event::kToChild:
      EXPECT_TRUE(event.mutable_to_child()->ParseFromString(kind));
      break;
    case v1::Event::kOutput:
      EXPECT_TRUE(event.mutable_output()->ParseFromString(kind));
      break;
    case v1::Event::kError:
      EXPECT_TRUE(event.mutable_error()->ParseFromString(kind));
      break;
    case v1::Event::kUndelivered:
      EXPECT_TRUE(event.mutable_undelivered()->ParseFromString(kind));
      break;
    case v1::Event::kStarted:
      EXPECT_TRUE(event.mutable_started()->ParseFromString(kind));
      break;
    case v1::Event::kSignalled:
      EXPECT_TRUE(event.mutable_signalled()->ParseFromString(kind));
      break;
    case v1::Event::kDisconnected:
      EXPECT_TRUE(event.mutable_disconnected()->ParseFromString(kind));
      break;
    case v1::Event::kExited:
      EXPECT_TRUE(event.mutable_exited()->ParseFromString(kind));
      break;
    case v1::Event::kClosed:
      EXPECT_TRUE(event.mutable_closed()->ParseFromString(kind));
      break;
    default:
      ADD_FAILURE() << "no such kind: " << fields.kind_field;
  }
  switch (fields.payload_field) {
    case PayloadField::kNone:
      break;
    case PayloadField::kText:
      event.set_text(std::string(fields.payload));
      break;
    case PayloadField::kJson:
      event.set_json(std::string(fields.payload));
      break;
    case PayloadField::kRaw:
      event.set_raw(std::string(fields.payload));
      break;
  }
  return batch.SerializeAsString();
}

template <typename Kind>
std::string Serialize(void (*fill)(Kind&)) {
  Kind kind;
  fill(kind);
  return kind.SerializeAsString();
}

TEST(EventEncoding, WritesWhatProtobufWrites) {
  struct {
    int kind_field;
    std::string kind;
    PayloadField payload_field;
  } const kinds[] = {
      {v1::Event::kFromChild, "", PayloadField::kJson},
      {v1::Event::kFromChild,
       std::string(EncodedKind::FromChild(v1::DIALECT_NODE, 1 << 20, true).bytes()),
       PayloadField::kJson},
      {v1::Event::kToChild, Serialize<v1::MessageToChild>([](auto& kind) {
         kind.set_size_bytes(7);
         kind.mutable_sender()->set_principal("uid:1000");
         kind.set_request_id("abc");
       }),
       PayloadField::kJson},
      {v1::Event::kOutput,
       std::string(EncodedKind::Output(v1::Output::STREAM_STDERR, 300, true, true).bytes()),
       PayloadField::kText},
      {v1::Event::kOutput, "", PayloadField::kRaw},
      {v1::Event::kError, Serialize<v1::Error>([](auto& kind) { kind.set_reason("INVALID_JSON"); }),
       PayloadField::kRaw},
      {v1::Event::kUndelivered,
       Serialize<v1::Undelivered>([](auto& kind) { kind.set_frame_bytes(9); }),
       PayloadField::kNone},
      {v1::Event::kStarted, Serialize<v1::Started>([](auto& kind) {
         kind.mutable_child()->set_program("sh");
         kind.mutable_child()->add_args(std::string(20000, 'x'));
       }),
       PayloadField::kNone},
      {v1::Event::kSignalled, Serialize<v1::Signalled>([](auto& kind) { kind.set_signal(9); }),
       PayloadField::kNone},
      {v1::Event::kDisconnected,
       Serialize<v1::Disconnected>([](auto& kind) { kind.set_by(v1::Disconnected::BY_CHILD); }),
       PayloadField::kNone},
      {v1::Event::kExited,
       Serialize<v1::Exited>([](auto& kind) { kind.mutable_status()->set_code(0); }),
       PayloadField::kNone},
      {v1::Event::kClosed, "", PayloadField::kNone},
  };
  for (const auto& kind : kinds) {
    for (const int64_t sequence : {int64_t{1}, int64_t{127}, int64_t{128}, int64_t{1} << 35}) {
      for (const int64_t time_us :
           {int64_t{0}, int64_t{999'999}, int64_t{1'000'000}, int64_t{1'764'000'000'123'456}}) {
        for (const size_t payload_bytes : {0, 1, 32, 127, 128, 16383, 16384, 1 << 20}) {
          const std::string payload(payload_bytes, '1');
          EventFields fields{.sequence = sequence,
                             .child_sequence = (sequence + 1) / 2,
                             .time_us = time_us,
                             .child = "abcdefghij",
                             .kind_field = kind.kind_field,
                             .kind = kind.kind,
                             .payload_field = kind.payload_field};
          if (kind.payload_field != PayloadField::kNone) fields.payload = payload;
          ASSERT_EQ(Encode(fields), EncodeByProtobuf(fields)) << kind.kind_field;
        }
      }
    }
  }
}

TEST(EventEncoding, EncodedKindsAreProtobufs) {
  for (const uint64_t size : {uint64_t{0}, uint64_t{1}, uint64_t{300}, uint64_t{1} << 40}) {
    for (const bool flag : {false, true}) {
      v1::MessageFromChild from_child;
      from_child.set_dialect(v1::DIALECT_DEKA);
      from_child.set_size_bytes(static_cast<int64_t>(size));
      from_child.set_internal(flag);
      EXPECT_EQ(EncodedKind::FromChild(v1::DIALECT_DEKA, size, flag).bytes(),
                from_child.SerializeAsString());
      v1::Output output;
      output.set_stream(v1::Output::STREAM_STDOUT);
      output.set_size_bytes(static_cast<int64_t>(size));
      output.set_partial(flag);
      output.set_unterminated(!flag);
      EXPECT_EQ(EncodedKind::Output(v1::Output::STREAM_STDOUT, size, flag, !flag).bytes(),
                output.SerializeAsString());
    }
  }
}

TEST(EventEncoding, AddsAtMost48BytesToAMessageOf32) {
  const EncodedKind kind = EncodedKind::FromChild(v1::DIALECT_NODE, 32, false);
  const std::string payload(32, '1');
  const EventFields fields{.sequence = int64_t{1} << 34,  // 17 thousand million events
                           .child_sequence = int64_t{1} << 34,
                           .time_us = 4'000'000'000'999'999,
                           .child = "abcdefghij",
                           .kind_field = v1::Event::kFromChild,
                           .kind = kind.bytes(),
                           .payload_field = PayloadField::kJson,
                           .payload = payload};
  EXPECT_LE(EntryBytes(fields), 32 + 48u);
}

TEST(EventEncoding, AShorterPayloadKeepsTheHead) {
  const size_t sizes[] = {0, 1, 100, 127, 128, 129, 16383, 16384, 20000, 70000};
  for (const size_t whole : sizes) {
    for (const size_t cut : sizes) {
      if (cut > whole) continue;
      const std::string payload(whole, 'x');
      EventFields fields{.sequence = 300,
                         .child_sequence = 7,
                         .time_us = 1'764'000'000'123'456,
                         .child = "abcdefghij",
                         .kind_field = v1::Event::kError,
                         .payload_field = PayloadField::kRaw,
                         .payload = payload};
      const std::string entry = Encode(fields);
      const std::string head =
          HeadForPayload(std::string_view(entry).substr(0, entry.size() - whole), whole, cut);
      fields.payload = std::string_view(payload).substr(0, cut);
      EXPECT_EQ(head + payload.substr(0, cut), Encode(fields)) << whole << " " << cut;
    }
  }
}

TEST(EventEncoding, KnowsEveryKind) {
  const google::protobuf::OneofDescriptor* kinds = v1::Event::descriptor()->FindOneofByName("kind");
  for (int i = 0; i < kinds->field_count(); ++i) {
    EXPECT_NE(KindOf(kinds->field(i)->number()), v1::EVENT_KIND_UNSPECIFIED)
        << kinds->field(i)->name();
  }
  EXPECT_EQ(KindOf(v1::Event::KIND_NOT_SET), v1::EVENT_KIND_UNSPECIFIED);
  EXPECT_EQ(DirectionOf(v1::Event::kFromChild), v1::DIRECTION_FROM_CHILD);
  EXPECT_EQ(DirectionOf(v1::Event::kToChild), v1::DIRECTION_TO_CHILD);
  EXPECT_EQ(DirectionOf(v1::Event::kOutput), v1::DIRECTION_UNSPECIFIED);
}

}  // namespace
}  // namespace deka::agent
