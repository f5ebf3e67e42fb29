#include "server/refusal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "ipc/error.h"

namespace deka::server {
namespace {

constexpr char kData = 0, kHeaders = 1, kSettings = 4, kGoAway = 7, kWindowUpdate = 8;
constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

absl::Status Why() {
  return ipc::MakeError(ipc::Reason::kConnectionsLimit, "100 % are taken.", {{"limit", "5"}});
}

struct Frame {
  char type = 0;
  char flags = 0;
  uint32_t stream = 0;
  std::string payload;
};

uint32_t Number(std::string_view bytes) {
  uint32_t number = 0;
  for (const char byte : bytes) number = number << 8 | static_cast<unsigned char>(byte);
  return number;
}

std::vector<Frame> FramesOf(std::string_view bytes) {
  std::vector<Frame> frames;
  while (bytes.size() >= 9) {
    const size_t size = Number(bytes.substr(0, 3));
    frames.push_back(
        {bytes[3], bytes[4], Number(bytes.substr(5, 4)), std::string(bytes.substr(9, size))});
    bytes.remove_prefix(std::min(bytes.size(), 9 + size));
  }
  EXPECT_TRUE(bytes.empty());
  return frames;
}

std::string Written(char type, uint32_t stream, const std::string& payload = "") {
  const auto size = static_cast<uint32_t>(payload.size());
  std::string frame;
  for (const int shift : {16, 8, 0}) frame += static_cast<char>(size >> shift);
  frame += {type, 0};
  for (const int shift : {24, 16, 8, 0}) frame += static_cast<char>(stream >> shift);
  return frame + payload;
}

// A client that makes calls on these streams.
std::string Client(const std::vector<uint32_t>& streams) {
  std::string bytes(kPreface);
  bytes += Written(kSettings, 0, "\0\3\0\0\0\1") + Written(kWindowUpdate, 0, "1234");
  for (const uint32_t stream : streams) {
    bytes += Written(kHeaders, stream, std::string(300, 'h')) + Written(kData, stream, "data");
  }
  return bytes;
}

// HPACK's strings: 7 bits, more if they are all set.
std::string TakeString(std::string_view& block) {
  size_t size = static_cast<unsigned char>(block[0]);
  EXPECT_LE(size, 127u) << "Huffman";
  block.remove_prefix(1);
  if (size == 127) {
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<unsigned char>(block[0]);
      block.remove_prefix(1);
      size += static_cast<size_t>(byte & 127) << shift;
      if (byte < 128) break;
    }
  }
  const std::string text(block.substr(0, size));
  block.remove_prefix(size);
  return text;
}

std::map<std::string, std::string> FieldsOf(std::string_view block) {
  std::map<std::string, std::string> fields;
  EXPECT_EQ(block[0], '\x88') << "status 200";
  block.remove_prefix(1);
  while (!block.empty()) {
    EXPECT_EQ(block[0], 0);
    block.remove_prefix(1);
    const std::string name = TakeString(block);
    fields[name] = TakeString(block);
  }
  return fields;
}

TEST(Refusal, BeginsAsAServer) {
  const std::vector<Frame> frames = FramesOf(Refusal::Begin());
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0].type, kSettings);
}

TEST(Refusal, AnswersACallWithTheWholeError) {
  Refusal refusal(Why());
  const std::vector<Frame> frames = FramesOf(refusal.Take(Client({1})));
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0].type, kHeaders);
  EXPECT_EQ(frames[0].flags, 5) << "it ends the headers and the stream";
  EXPECT_EQ(frames[0].stream, 1u);
  const auto fields = FieldsOf(frames[0].payload);
  EXPECT_EQ(fields.at("content-type"), "application/grpc");
  EXPECT_EQ(fields.at("grpc-status"), "8");
  EXPECT_EQ(fields.at("grpc-message"), "100 %25 are taken.");
  std::string details;
  ASSERT_TRUE(absl::Base64Unescape(fields.at("grpc-status-details-bin"), &details));
  google::rpc::Status status;
  ASSERT_TRUE(status.ParseFromString(details));
  EXPECT_EQ(status.message(), "100 % are taken.");
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(status.details(0).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "CONNECTIONS_LIMIT");
  EXPECT_EQ(info.metadata().at("limit"), "5");
}

TEST(Refusal, AnswersEachCallOnce) {
  Refusal refusal(Why());
  const std::vector<Frame> frames = FramesOf(refusal.Take(Client({1, 3, 5})));
  ASSERT_EQ(frames.size(), 3u);
  for (const uint32_t i : {0, 1, 2}) {
    EXPECT_EQ(frames[i].type, kHeaders);
    EXPECT_EQ(frames[i].stream, 2 * i + 1);
  }
  EXPECT_EQ(refusal.Take(Written(kHeaders, 3)), "") << "trailers";
  const std::vector<Frame> later = FramesOf(refusal.Take(Written(kHeaders, 7)));
  ASSERT_EQ(later.size(), 1u);
  EXPECT_EQ(later[0].stream, 7u);
  EXPECT_EQ(later[0].payload, frames[0].payload);
  EXPECT_FALSE(refusal.ended());
}

void ExpectGoAway(const Frame& frame, uint32_t last_stream) {
  EXPECT_EQ(frame.type, kGoAway);
  EXPECT_EQ(frame.stream, 0u);
  EXPECT_EQ(Number(frame.payload.substr(0, 4)), last_stream);
  EXPECT_EQ(Number(frame.payload.substr(4, 4)), 0u);
  EXPECT_EQ(frame.payload.substr(8), "100 % are taken.");
}

TEST(Refusal, AnswersAClientThatIsAskedToLeaveUntilItHas) {
  Refusal refusal(Why());
  (void)refusal.Take(Client({1}));
  std::vector<Frame> frames = FramesOf(refusal.AskToLeave());
  ASSERT_EQ(frames.size(), 1u);
  // No call is named as one that is not answered.
  ExpectGoAway(frames[0], 0x7FFFFFFF);
  EXPECT_FALSE(refusal.ended());
  frames = FramesOf(refusal.Take(Written(kHeaders, 3)));
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0].type, kHeaders);
  EXPECT_EQ(frames[0].stream, 3u);
}

TEST(Refusal, NamesTheLastCallThatItAnsweredAtItsEnd) {
  Refusal refusal(Why());
  (void)refusal.Take(Client({1, 3, 5}));
  const std::vector<Frame> frames = FramesOf(refusal.End());
  ASSERT_EQ(frames.size(), 1u);
  ExpectGoAway(frames[0], 5);
  // The client makes what comes later on another connection.
  EXPECT_TRUE(refusal.ended());
  EXPECT_EQ(refusal.Take(Written(kHeaders, 7)), "");
  EXPECT_EQ(refusal.AskToLeave(), "");
  EXPECT_EQ(refusal.End(), "");
}

TEST(Refusal, WaitsForNoneThatHasNotBegunWhenItAsksToLeave) {
  for (const std::string_view client : {std::string_view(), kPreface.substr(0, 23)}) {
    Refusal refusal(Why());
    EXPECT_EQ(refusal.Take(client), "");
    const std::vector<Frame> frames = FramesOf(refusal.AskToLeave());
    EXPECT_TRUE(refusal.ended());
    ASSERT_EQ(frames.size(), 1u);
    ExpectGoAway(frames[0], 0);
  }
}

TEST(Refusal, TakesItsClientHoweverItIsCut) {
  const std::string client = Client({1});
  Refusal whole(Why());
  const std::string answer = whole.Take(client);
  for (size_t cut = 0; cut <= client.size(); ++cut) {
    Refusal refusal(Why());
    const std::string first = refusal.Take(client.substr(0, cut));
    EXPECT_EQ(first + refusal.Take(client.substr(cut)), answer) << cut;
  }
  Refusal refusal(Why());
  std::string answers;
  for (const char byte : client) answers += refusal.Take({&byte, 1});
  EXPECT_EQ(answers, answer);
}

TEST(Refusal, WaitsForACall) {
  Refusal refusal(Why());
  EXPECT_EQ(refusal.Take(Client({})), "");
  EXPECT_FALSE(refusal.ended());
  const std::vector<Frame> frames = FramesOf(refusal.End());
  EXPECT_TRUE(refusal.ended());
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0].type, kGoAway);
  EXPECT_EQ(Number(frames[0].payload.substr(0, 4)), 0u);
}

TEST(Refusal, IsReadByAClientOfAnotherProtocol) {
  for (const std::string client : {"GET / HTTP/1.1\r\n", "PRI * HTTP/2.1", "\x16\x03\x01"}) {
    Refusal refusal(Why());
    EXPECT_THAT(refusal.Take(client), testing::EndsWith("100 % are taken.")) << client;
    EXPECT_TRUE(refusal.ended());
  }
}

}  // namespace
}  // namespace deka::server
