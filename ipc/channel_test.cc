#include "ipc/channel.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "ipc/descriptor.h"
#include "ipc/error.h"
#include "ipc/testing.h"

namespace {
std::atomic<size_t> allocations = 0;
}  // namespace

void* operator new(size_t size) {
  ++allocations;
  void* memory = std::malloc(size);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace deka::ipc {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;

struct Bad {
  std::optional<Reason> reason;
  std::string text;
  std::string bytes;
  uint64_t size_bytes;
};

struct Outcome {
  uint64_t tag;
  std::string json;
  uint64_t written_bytes;
  absl::Status status;
};

// Writes down what it hears: m message, b bad frame, r end of a read, s sent, w end of a write,
// d drain, c closed.
class Recorder : public Channel::Listener, public Calls {
 public:
  void OnMessage(Message message) override {
    messages.emplace_back(message.json);
    if (message.internal) ++internal;
    Heard('m');
  }
  void OnReadEnd() override { Heard('r'); }
  void OnBadFrame(BadFrame frame) override {
    bad.push_back({ReasonOf(frame.reason), std::string(frame.reason.message()),
                   std::string(frame.bytes), frame.size_bytes});
    Heard('b');
  }
  void OnSent(Sent sent) override {
    outcomes.push_back({sent.tag, std::string(sent.json), sent.written_bytes, sent.status});
    Heard('s');
  }
  void OnWriteEnd() override { Heard('w'); }
  void OnDrain() override { Heard('d'); }
  void OnClosed(absl::Status reason) override {
    EXPECT_FALSE(closed.has_value()) << "told twice";
    closed = std::move(reason);
    Heard('c');
  }

  std::vector<std::string> messages;
  size_t internal = 0;
  std::vector<Bad> bad;
  std::vector<Outcome> outcomes;
  std::optional<absl::Status> closed;
};

class ChannelTest : public testing::Test {
 protected:
  ChannelTest() {
    MakeSocketPair();
    options_.dialect = Dialect::kNode;
  }

  void MakeSocketPair() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    ours_ = Descriptor(ends[0]);
    peer_ = Descriptor(ends[1]);
    fcntl(peer_.get(), F_SETFL, O_NONBLOCK);
    peer_saw_end_ = false;
  }

  // The socket takes a few kilobytes from this side.
  void MakeSocketSmall() {
    constexpr int kBytes = 4096;
    EXPECT_EQ(setsockopt(ours_.get(), SOL_SOCKET, SO_SNDBUF, &kBytes, sizeof(kBytes)), 0);
  }

  void Open() {
    channel_.reset();
    absl::StatusOr<StreamMemory> memory = StreamMemory::Allocate(options_.memory_limits());
    ASSERT_TRUE(memory.ok()) << memory.status();
    memory_.emplace(*std::move(memory));
    OpenInMemory();
  }

  void OpenInMemory() {
    absl::StatusOr<std::unique_ptr<Channel>> channel =
        Channel::Open(loop_, ours_.get(), *memory_, options_, heard_);
    ASSERT_TRUE(channel.ok()) << channel.status();
    ours_.Release();
    channel_ = *std::move(channel);
  }

  [[nodiscard]] bool Until(absl::FunctionRef<bool()> condition) {
    return RunUntil(loop_, condition);
  }
  [[nodiscard]] bool UntilClosed() {
    return Until([&] { return heard_.closed.has_value(); });
  }
  [[nodiscard]] bool UntilMessages(size_t count) {
    return Until([&] { return heard_.messages.size() >= count; });
  }
  [[nodiscard]] bool UntilSent(size_t count) {
    return Until([&] { return heard_.outcomes.size() >= count; });
  }

  // The peer writes all of it, while the loop runs.
  void Write(std::string_view bytes) {
    ASSERT_TRUE(Until([&] {
      while (!bytes.empty()) {
        const ssize_t count = send(peer_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (count < 0) return errno != EAGAIN;
        bytes.remove_prefix(static_cast<size_t>(count));
      }
      return true;
    }));
    EXPECT_TRUE(bytes.empty()) << std::strerror(errno);
  }

  // As much as the socket takes, without the loop.
  size_t WriteUntilBlocked(std::string_view bytes) {
    size_t written = 0;
    while (written < bytes.size()) {
      const ssize_t count =
          send(peer_.get(), bytes.data() + written, bytes.size() - written, MSG_NOSIGNAL);
      if (count < 0) break;
      written += static_cast<size_t>(count);
    }
    return written;
  }

  void WriteWithDescriptors(std::string_view bytes, const std::vector<int>& descriptors) {
    iovec part = {const_cast<char*>(bytes.data()), bytes.size()};
    std::vector<char> control(CMSG_SPACE(descriptors.size() * sizeof(int)));
    msghdr message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size() * sizeof(int));
    ASSERT_EQ(sendmsg(peer_.get(), &message, MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }

  // What has come to the peer by now.
  std::string ReadPeer() {
    std::string all;
    char bytes[65536];
    for (;;) {
      const ssize_t count = read(peer_.get(), bytes, sizeof(bytes));
      if (count == 0) peer_saw_end_ = true;
      if (count <= 0) return all;
      all.append(bytes, static_cast<size_t>(count));
    }
  }

  std::string ReadPeerUntil(size_t size) {
    std::string all;
    EXPECT_TRUE(Until([&] {
      all += ReadPeer();
      return all.size() >= size;
    })) << all.size();
    return all;
  }

  bool PeerSeesEnd() {
    return Until([&] {
      ReadPeer();
      return peer_saw_end_;
    });
  }

  void Send(std::string_view json, uint64_t tag = 0) {
    const absl::StatusOr<Channel::Accepted> accepted = channel_->Send(json, tag);
    ASSERT_TRUE(accepted.ok()) << accepted.status();
  }

  std::optional<Reason> Refused(std::string_view json) {
    const absl::StatusOr<Channel::Accepted> accepted = channel_->Send(json, 0);
    return accepted.ok() ? std::nullopt : ReasonOf(accepted.status());
  }

  // A queue that the peer does not read: a first message fills the socket and blocks, begun.
  void BlockSocket() {
    Send(JsonOf(1 << 20), kBlocker);
    ASSERT_TRUE(Until([&] { return channel_->queued_bytes() < (1 << 20); }));
    ASSERT_GT(channel_->queued_bytes(), 0u);
  }

  // A JSON string of that many bytes.
  static std::string JsonOf(size_t size) { return '"' + std::string(size - 2, 'x') + '"'; }

  static constexpr uint64_t kBlocker = 1000000;

  EventLoop loop_;
  Recorder heard_;
  Channel::Options options_;
  Descriptor ours_, peer_;
  bool peer_saw_end_ = false;
  std::optional<StreamMemory> memory_;
  std::unique_ptr<Channel> channel_;
};

// --- reading ---

TEST_F(ChannelTest, TellsMessagesInOrderAndTheEndOfEachRead) {
  Open();
  Write("1\n[2,\"\xc3\xa4\"]\n");
  ASSERT_TRUE(UntilMessages(2));
  Write("{\"three\":3}\n");
  ASSERT_TRUE(UntilMessages(3));
  EXPECT_THAT(heard_.messages, ElementsAre("1", "[2,\"\xc3\xa4\"]", "{\"three\":3}"));
  EXPECT_EQ(heard_.order, "mmrmr");
}

TEST_F(ChannelTest, TakesTheEnvelopeOfDialectDekaOff) {
  options_.dialect = Dialect::kDeka;
  Open();
  Write("{\"cmd\":\"NODE_HANDLE\",\"msg\":{\"a\":1}}\n");
  ASSERT_TRUE(UntilMessages(1));
  EXPECT_THAT(heard_.messages, ElementsAre("{\"a\":1}"));
}

TEST_F(ChannelTest, MarksNodesInternalMessages) {
  Open();
  Write("{\"cmd\":\"NODE_FOO\",\"a\":1}\n{\"cmd\":\"NODE_\"}\n");
  ASSERT_TRUE(UntilMessages(2));
  EXPECT_EQ(heard_.internal, 1u);
  EXPECT_THAT(heard_.messages,
              ElementsAre("{\"cmd\":\"NODE_FOO\",\"a\":1}", "{\"cmd\":\"NODE_\"}"));
}

TEST_F(ChannelTest, MessagesThatComeByteByByteAreWhole) {
  Open();
  const std::string bytes = "{\"a\":\"\xe2\x82\xac\"}\n\n[]\n";
  for (char byte : bytes) {
    Write({&byte, 1});
    RunFor(loop_, milliseconds(0));
  }
  ASSERT_TRUE(UntilMessages(2));
  EXPECT_THAT(heard_.messages, ElementsAre("{\"a\":\"\xe2\x82\xac\"}", "[]"));
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_EQ(heard_.bad[0].reason, Reason::kInvalidJson) << "the empty line";
}

TEST_F(ChannelTest, MessagesOfAllSizesSurviveTheRing) {
  options_.message_bytes_max = 40000;  // the ring holds 128 KiB
  options_.queue_bytes_max = 1 << 20;
  Open();
  std::mt19937 random(3);
  std::vector<std::string> expected;
  std::string bytes;
  for (int i = 0; i < 600; ++i) {
    expected.push_back(JsonOf(3 + random() % (random() % 4 == 0 ? 39998 : 100)));
    expected.back()[1] = static_cast<char>('a' + i % 26);
    bytes += expected.back() + '\n';
  }
  for (size_t written = 0; written < bytes.size();) {
    const size_t count = 1 + random() % 90000;
    Write(std::string_view(bytes).substr(written, count));
    written += count;
  }
  ASSERT_TRUE(UntilMessages(expected.size()));
  EXPECT_EQ(heard_.messages, expected);
  EXPECT_TRUE(heard_.bad.empty());
}

TEST_F(ChannelTest, AMessageAtTheLimitPassesAndOnePastIsTold) {
  options_.message_bytes_max = 1000;
  for (Dialect dialect : {Dialect::kNode, Dialect::kDeka}) {
    SCOPED_TRACE(DialectName(dialect));
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    ours_ = Descriptor(ends[0]);
    peer_ = Descriptor(ends[1]);
    heard_ = Recorder();
    options_.dialect = dialect;
    channel_.reset();
    Open();
    const auto write = [&](const std::string& json) {
      const FrameParts frame = Codec::EncodeAs(dialect, json);
      Write(fmt::format("{}{}{}", frame.prefix, frame.value, frame.suffix));
    };
    write(JsonOf(1000));
    write(JsonOf(1001));
    write("\"next\"");
    ASSERT_TRUE(UntilMessages(2));
    EXPECT_THAT(heard_.messages, ElementsAre(JsonOf(1000), "\"next\""));
    ASSERT_EQ(heard_.bad.size(), 1u);
    EXPECT_EQ(heard_.bad[0].reason, Reason::kMessageTooLarge);
    EXPECT_EQ(heard_.bad[0].bytes.size(), Channel::kBadFrameBytes);
  }
}

TEST_F(ChannelTest, AFrameLongerThanAnyMessageIsSkippedAndTold) {
  options_.message_bytes_max = 1000;
  Open();
  const size_t line_bytes_max = 1000 + kEnvelopeBytesMax;
  // White space counts for the frame, not for the value.
  Write(std::string(line_bytes_max - 1, ' ') + "1\n");
  Write(std::string(line_bytes_max, ' ') + "2\n");
  Write("3\n");
  ASSERT_TRUE(UntilMessages(2));
  EXPECT_THAT(heard_.messages, ElementsAre("1", "3"));
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_EQ(heard_.bad[0].reason, Reason::kMessageTooLarge);
  EXPECT_EQ(heard_.bad[0].size_bytes, line_bytes_max + 1);
  EXPECT_EQ(heard_.bad[0].bytes, std::string(64, ' '));
}

TEST_F(ChannelTest, AnEndlessLineIsSkippedInBoundedMemory) {
  options_.message_bytes_max = 1000;
  Open();
  const size_t size = 20 << 20;
  Write(std::string(size, 'x') + "\n[4]\n");
  ASSERT_TRUE(UntilMessages(1));
  EXPECT_THAT(heard_.messages, ElementsAre("[4]"));
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_EQ(heard_.bad[0].reason, Reason::kMessageTooLarge);
  EXPECT_EQ(heard_.bad[0].size_bytes, size);
  EXPECT_LE(memory_->control().inbox_capacity, size_t{256} << 10);
}

struct BadInput {
  const char* name;
  Dialect dialect;
  std::string bytes;
  Reason reason;
};

std::vector<BadInput> BadInputs() {
  const std::string deep = std::string(10000, '[') + std::string(10000, ']');
  return {
      {"NotJson", Dialect::kNode, "hello", Reason::kInvalidJson},
      {"NotJsonInDeka", Dialect::kDeka, "hello", Reason::kInvalidJson},
      {"NoEnvelope", Dialect::kDeka, "{\"a\":1}", Reason::kEnvelopeMissing},
      {"NoEnvelopeScalar", Dialect::kDeka, "1", Reason::kEnvelopeMissing},
      {"InvalidUtf8", Dialect::kNode, "\"\xff\"", Reason::kInvalidJson},
      {"CutUtf8", Dialect::kNode, "\"\xe2\x82\"", Reason::kInvalidJson},
      {"Deep", Dialect::kNode, deep, Reason::kInvalidJson},
      {"DeepInDeka", Dialect::kDeka, "{\"cmd\":\"NODE_HANDLE\",\"msg\":" + deep + "}",
       Reason::kInvalidJson},
      {"NulByte", Dialect::kNode, std::string("\"a\0b\"", 5), Reason::kInvalidJson},
      {"NulAlone", Dialect::kNode, std::string(1, '\0'), Reason::kInvalidJson},
      {"EmptyLine", Dialect::kNode, "", Reason::kInvalidJson},
      {"EmptyLineInDeka", Dialect::kDeka, "", Reason::kInvalidJson},
      {"TwoValues", Dialect::kNode, "1 2", Reason::kInvalidJson},
      {"HalfAnObject", Dialect::kNode, "{\"a\":", Reason::kInvalidJson},
      {"ByteOrderMark", Dialect::kNode, "\xef\xbb\xbf[1]", Reason::kInvalidJson},
  };
}

class BadInputTest : public ChannelTest, public testing::WithParamInterface<BadInput> {};

TEST_P(BadInputTest, IsToldAndTheNextMessageArrives) {
  options_.dialect = GetParam().dialect;
  Open();
  const FrameParts good = Codec::EncodeAs(options_.dialect, "[7]");
  const std::string next = fmt::format("{}{}{}", good.prefix, good.value, good.suffix);
  Write(next + GetParam().bytes + "\n" + next);
  ASSERT_TRUE(UntilMessages(2));
  EXPECT_THAT(heard_.messages, ElementsAre("[7]", "[7]"));
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_EQ(heard_.bad[0].reason, GetParam().reason) << heard_.bad[0].text;
  EXPECT_EQ(heard_.bad[0].bytes, GetParam().bytes.substr(0, Channel::kBadFrameBytes));
  EXPECT_EQ(heard_.bad[0].size_bytes, GetParam().bytes.size());
  EXPECT_EQ(heard_.order.substr(heard_.order.find('b') - 1, 3), "mbm");
  EXPECT_EQ(channel_->state(), Channel::State::kOpen);
}

INSTANTIATE_TEST_SUITE_P(All, BadInputTest, testing::ValuesIn(BadInputs()),
                         [](const auto& test) { return std::string(test.param.name); });

TEST_F(ChannelTest, NumbersAndEscapesThatNoParserConvertsPassUntouched) {
  Open();
  const std::vector<std::string> values = {"1e20",           "123456789012345678901234567890",
                                           "1e999",          "\"\\ud800\"",
                                           "[-0.0, 1E-400]", " {\"a\" : 1 } "};
  for (const std::string& value : values) Write(value + "\n");
  ASSERT_TRUE(UntilMessages(values.size()));
  for (size_t i = 0; i + 1 < values.size(); ++i) EXPECT_EQ(heard_.messages[i], values[i]);
  EXPECT_TRUE(heard_.bad.empty());
}

TEST_F(ChannelTest, DepthAtTheLimitPassesAndOnePastIsTold) {
  options_.json_depth_max = 5;
  Open();
  Write("[[[[[]]]]]\n[[[[[[]]]]]]\n[]\n");
  ASSERT_TRUE(UntilMessages(2));
  EXPECT_THAT(heard_.messages, ElementsAre("[[[[[]]]]]", "[]"));
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_EQ(heard_.bad[0].reason, Reason::kInvalidJson);
  EXPECT_EQ(Refused("[[[[[[]]]]]]"), Reason::kInvalidJson);
  Send("[[[[[]]]]]");
}

TEST_F(ChannelTest, OneReadForEachChannelInTurnThoughOneFloods) {
  Open();
  Recorder other_heard;
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  Descriptor other_peer(ends[1]);
  absl::StatusOr<StreamMemory> memory = StreamMemory::Allocate(options_.memory_limits());
  ASSERT_TRUE(memory.ok());
  absl::StatusOr<std::unique_ptr<Channel>> other =
      Channel::Open(loop_, ends[0], *memory, options_, other_heard);
  ASSERT_TRUE(other.ok());
  std::string flood;
  while (flood.size() < 200000) flood += "\"0123456789012345678901234567890\"\n";
  EXPECT_GT(WriteUntilBlocked(flood), size_t{128} << 10);
  ASSERT_EQ(write(other_peer.get(), "1\n", 2), 2);
  ASSERT_TRUE(Until([&] { return other_heard.messages.size() == 1; }));
  EXPECT_LE(heard_.Count('r'), 1u);
}

// --- the end ---

TEST_F(ChannelTest, EndOfFileBetweenFramesIsNoError) {
  Open();
  Write("1\n");
  peer_.Close();
  ASSERT_TRUE(UntilClosed());
  EXPECT_TRUE(heard_.closed->ok()) << *heard_.closed;
  EXPECT_EQ(heard_.order, "mrc");
  EXPECT_EQ(channel_->state(), Channel::State::kClosed);
  EXPECT_EQ(Refused("1"), Reason::kChannelClosed);
}

TEST_F(ChannelTest, EndOfFileInTheMiddleOfAFrameIsTold) {
  Open();
  Write("1\n{\"half");
  peer_.Close();
  ASSERT_TRUE(UntilClosed());
  EXPECT_EQ(ReasonOf(*heard_.closed), Reason::kFrameTruncated);
  EXPECT_EQ(heard_.closed->code(), absl::StatusCode::kDataLoss);
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_EQ(heard_.bad[0].reason, Reason::kFrameTruncated);
  EXPECT_EQ(heard_.bad[0].bytes, "{\"half");
  EXPECT_EQ(heard_.bad[0].size_bytes, 6u);
  EXPECT_EQ(heard_.order.back(), 'c');
}

TEST_F(ChannelTest, OfAFrameWithoutAnEndTheFirstBytesAreTold) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += static_cast<char>('0' + i % 10);
  for (const size_t size : {Channel::kBadFrameBytes, Channel::kBadFrameBytes + 1}) {
    SCOPED_TRACE(size);
    heard_ = Recorder();
    MakeSocketPair();
    Open();
    Write(text.substr(0, size));
    peer_.Close();
    ASSERT_TRUE(UntilClosed());
    ASSERT_EQ(heard_.bad.size(), 1u);
    EXPECT_EQ(heard_.bad[0].bytes, text.substr(0, Channel::kBadFrameBytes));
    EXPECT_EQ(heard_.bad[0].size_bytes, size);
  }
}

TEST_F(ChannelTest, EndOfFileInTheMiddleOfALineThatIsTooLongIsTold) {
  options_.message_bytes_max = 10;
  Open();
  Write(std::string(10000, 'x'));
  peer_.Close();
  ASSERT_TRUE(UntilClosed());
  EXPECT_EQ(ReasonOf(*heard_.closed), Reason::kFrameTruncated);
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_EQ(heard_.bad[0].reason, Reason::kMessageTooLarge);
  EXPECT_EQ(heard_.bad[0].size_bytes, 10000u);
}

TEST_F(ChannelTest, AConnectionResetIsNotTheEnd) {
  Open();
  Send("\"never read\"");
  ASSERT_TRUE(UntilSent(1));
  channel_->PauseReading();
  std::string last;
  for (int i = 0; i < 3000; ++i)
    last += fmt::format("[{},\"0123456789012345678901234567890\"]\n", i);
  EXPECT_EQ(WriteUntilBlocked(last), last.size());
  peer_.Close();  // with unread input: ECONNRESET stands before those bytes
  channel_->ResumeReading();
  ASSERT_TRUE(UntilClosed());
  EXPECT_EQ(heard_.messages.size(), 3000u);
  EXPECT_TRUE(heard_.closed->ok()) << *heard_.closed;
}

TEST_F(ChannelTest, AnIoErrorClosesTheChannelAndSaysWhy) {
  // What is no stream socket cannot be read as one.
  int pipe_ends[2];
  ASSERT_EQ(pipe2(pipe_ends, O_CLOEXEC), 0);
  Descriptor write_end(pipe_ends[1]);
  ours_ = Descriptor(pipe_ends[0]);
  Open();
  ASSERT_EQ(write(write_end.get(), "1\n", 2), 2);
  ASSERT_TRUE(UntilClosed());
  EXPECT_EQ(ReasonOf(*heard_.closed), Reason::kChannelFailed);
  EXPECT_THAT(std::string(heard_.closed->message()), HasSubstr("Socket operation on non-socket"));
  EXPECT_EQ(heard_.order, "c");
}

// --- pausing ---

TEST_F(ChannelTest, PausedItLeavesBytesInTheSocketAndThePeerBlocks) {
  Open();
  channel_->PauseReading();
  std::string flood;
  while (flood.size() < (1 << 20)) flood += "\"0123456789012345678901234567890\"\n";
  const size_t written = WriteUntilBlocked(flood);
  EXPECT_LT(written, size_t{512} << 10);
  RunFor(loop_, milliseconds(50));
  EXPECT_EQ(heard_.order, "");
  EXPECT_EQ(WriteUntilBlocked(flood), 0u);
  channel_->ResumeReading();
  Write(std::string_view(flood).substr(written));
  ASSERT_TRUE(UntilMessages(flood.size() / 34));
  EXPECT_TRUE(heard_.bad.empty());
}

TEST_F(ChannelTest, PausedInTheMiddleOfAReadItKeepsTheRest) {
  Open();
  heard_.on_event = [&](char event) {
    if (event == 'm') channel_->PauseReading();
  };
  Write("1\n2\n3\n");
  ASSERT_TRUE(UntilMessages(1));
  RunFor(loop_, milliseconds(20));
  EXPECT_EQ(heard_.order, "mr");
  channel_->ResumeReading();
  EXPECT_EQ(heard_.order, "mr") << "never from inside a call";
  ASSERT_TRUE(UntilMessages(2));
  peer_.Close();
  RunFor(loop_, milliseconds(20));
  EXPECT_EQ(heard_.order, "mrmr");
  heard_.on_event = nullptr;
  channel_->ResumeReading();
  ASSERT_TRUE(UntilClosed());
  EXPECT_THAT(heard_.messages, ElementsAre("1", "2", "3"));
  EXPECT_EQ(heard_.order, "mrmrmrc");
}

TEST_F(ChannelTest, PausedItCostsNoTimeThoughThePeerIsGone) {
  Open();
  Write("1\n");
  ASSERT_TRUE(UntilMessages(1));
  Send("2");
  ASSERT_TRUE(UntilSent(1));
  channel_->PauseReading();
  Write("3\n");
  peer_.Close();
  const double before = CpuSeconds();
  RunFor(loop_, milliseconds(200));
  EXPECT_LT(CpuSeconds() - before, 0.1);
  EXPECT_EQ(heard_.messages.size(), 1u);
  channel_->ResumeReading();
  ASSERT_TRUE(UntilClosed());
  EXPECT_THAT(heard_.messages, ElementsAre("1", "3"));
}

TEST_F(ChannelTest, PausedWithAQueueItSeesThatNobodyReadsItAndThenRests) {
  Open();
  BlockSocket();
  channel_->PauseReading();
  peer_.Close();
  ASSERT_TRUE(UntilSent(1));
  EXPECT_EQ(ReasonOf(heard_.outcomes[0].status), Reason::kChannelClosed);
  const double before = CpuSeconds();
  RunFor(loop_, milliseconds(200));
  EXPECT_LT(CpuSeconds() - before, 0.1);
  channel_->ResumeReading();
  ASSERT_TRUE(UntilClosed());
}

// --- writing ---

TEST_F(ChannelTest, SendsAreFramesOfTheDialect) {
  for (Dialect dialect : {Dialect::kNode, Dialect::kDeka}) {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    ours_ = Descriptor(ends[0]);
    peer_ = Descriptor(ends[1]);
    options_.dialect = dialect;
    channel_.reset();
    Open();
    Send("{\"a\":1}");
    const std::string expected =
        dialect == Dialect::kNode ? "{\"a\":1}\n" : "{\"cmd\":\"NODE_HANDLE\",\"msg\":{\"a\":1}}\n";
    EXPECT_EQ(ReadPeerUntil(expected.size()), expected);
  }
}

TEST_F(ChannelTest, ASendIsNotWrittenInsideTheCallAndOneTurnsSendsGoTogether) {
  Open();
  for (uint64_t tag = 1; tag <= 100; ++tag) Send(fmt::format("[{}]", tag), tag);
  EXPECT_EQ(ReadPeer(), "");
  EXPECT_EQ(heard_.order, "");
  ASSERT_TRUE(UntilSent(100));
  EXPECT_EQ(heard_.order, std::string(100, 's') + 'w');
  for (uint64_t tag = 1; tag <= 100; ++tag) {
    const Outcome& outcome = heard_.outcomes[tag - 1];
    EXPECT_EQ(outcome.tag, tag);
    EXPECT_EQ(outcome.json, fmt::format("[{}]", tag));
    EXPECT_EQ(outcome.written_bytes, outcome.json.size() + 1);
    EXPECT_TRUE(outcome.status.ok());
  }
  EXPECT_EQ(channel_->queued_messages(), 0u);
  EXPECT_EQ(channel_->queued_bytes(), 0u);
}

TEST_F(ChannelTest, AnAnswerGoesOutInTheTurnOfItsQuestion) {
  Open();
  heard_.on_event = [&](char event) {
    if (event == 'm') Send(heard_.messages.back());
  };
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(send(peer_.get(), "1\n", 2, 0), 2);
    uv_run(loop_.uv(), UV_RUN_NOWAIT);  // reads
    uv_run(loop_.uv(), UV_RUN_NOWAIT);  // the end of that turn stands before this one's wait
    ASSERT_EQ(ReadPeer(), "1\n");
  }
}

TEST_F(ChannelTest, LineBreaksBetweenTokensAreSentAsSpaces) {
  Open();
  Send("{\r\n  \"a\": [\n1,\r2\n]\n}\n");
  EXPECT_EQ(ReadPeerUntil(22), "{    \"a\": [ 1, 2 ] } \n");
}

TEST_F(ChannelTest, LineBreaksAreSentAsSpacesWhereverAMessageLiesInTheRing) {
  options_.message_bytes_max = 1000;
  options_.queue_bytes_max = 20000;
  MakeSocketSmall();
  Open();
  const std::string breaks(500, '\n'), spaces(500, ' ');
  const size_t ring_bytes = memory_->control().out_capacity;
  std::string received, expected;
  while (expected.size() < 3 * ring_bytes) {
    while (channel_->Send("[1" + breaks + ",2]", 0).ok()) expected += "[1" + spaces + ",2]\n";
    // The queue is never empty: it would begin again at the first byte of its ring.
    ASSERT_TRUE(Until([&] {
      char bytes[600];
      const ssize_t count = read(peer_.get(), bytes, sizeof(bytes));
      if (count > 0) received.append(bytes, static_cast<size_t>(count));
      loop_.Post([] {});  // a turn, though the socket may have no room yet
      return channel_->queued_bytes() <= 15000;
    }));
    ASSERT_GT(channel_->queued_messages(), 0u);
  }
  received += ReadPeerUntil(expected.size() - received.size());
  EXPECT_TRUE(received == expected);
}

TEST_F(ChannelTest, RefusesWhatIsNoMessageAndQueuesNothing) {
  Open();
  for (const char* json :
       {"", " ", "hello", "1 2", "{\"a\":", "\"\xff\"", "[1]\n[2]", "\"a\nb\""}) {
    EXPECT_EQ(Refused(json), Reason::kInvalidJson) << json;
  }
  EXPECT_EQ(Refused("{\"cmd\":\"NODE_HANDLE_ACK\"}"), Reason::kReservedMessage);
  EXPECT_EQ(channel_->queued_messages(), 0u);
  EXPECT_EQ(channel_->queued_bytes(), 0u);
  Send("[1]");
  EXPECT_EQ(ReadPeerUntil(4), "[1]\n");
}

TEST_F(ChannelTest, AMessageToSendAtTheLimitPassesAndOnePastIsRefused) {
  options_.message_bytes_max = 1000;
  options_.queue_bytes_max = 1000;
  options_.dialect = Dialect::kDeka;
  Open();
  EXPECT_EQ(Refused(JsonOf(1001)), Reason::kMessageTooLarge);
  // An empty queue takes it though its frame is longer than the queue.
  Send(JsonOf(1000));
  ReadPeerUntil(1001);
}

TEST_F(ChannelTest, TheQueueIsBoundedInBytes) {
  options_.message_bytes_max = 1 << 20;
  options_.queue_bytes_max = 3 << 19;
  Open();
  BlockSocket();
  const size_t room = options_.queue_bytes_max - channel_->queued_bytes();
  Send(JsonOf(room - 1000 - 1));
  EXPECT_EQ(Refused(JsonOf(1000)), Reason::kQueueFull) << "with its line break one past";
  Send(JsonOf(999));
  EXPECT_EQ(channel_->queued_bytes(), options_.queue_bytes_max);
  EXPECT_EQ(Refused("1"), Reason::kQueueFull);
  EXPECT_EQ(channel_->queued_messages(), 3u);
}

TEST_F(ChannelTest, TheQueueIsBoundedInMessages) {
  options_.queue_messages_max = 10;
  Open();
  BlockSocket();
  for (int i = 0; i < 9; ++i) Send("1");
  EXPECT_EQ(channel_->queued_messages(), 10u);
  const absl::StatusOr<Channel::Accepted> refused = channel_->Send("2", 0);
  EXPECT_EQ(ReasonOf(refused.status()), Reason::kQueueFull);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(MetadataOf(refused.status(), "limit"), "10");
  EXPECT_EQ(channel_->queued_messages(), 10u);
}

TEST_F(ChannelTest, SaysWhenMuchWaitsAndWhenItNoLongerDoes) {
  Open();
  EXPECT_EQ(*channel_->Send(JsonOf(Channel::kSendBufferLow - 2), 1), Channel::Accepted::kAccepted);
  ASSERT_TRUE(UntilSent(1));
  EXPECT_EQ(heard_.order, "sw") << "no drain without kAcceptedHigh";
  ReadPeer();
  EXPECT_EQ(*channel_->Send(JsonOf(Channel::kSendBufferLow - 1), 2),
            Channel::Accepted::kAcceptedHigh);
  ASSERT_TRUE(UntilSent(2));
  ASSERT_TRUE(Until([&] { return heard_.Count('d') == 1; }));
  EXPECT_EQ(heard_.order, "swswd");
}

TEST_F(ChannelTest, AtTheMarkMuchWaitsAndBelowItTheDrainIsTold) {
  MakeSocketSmall();
  Open();
  Send(JsonOf(100000), kBlocker);
  ASSERT_TRUE(Until([&] { return channel_->queued_bytes() < 100000; }));
  const size_t room = Channel::kSendBufferLow - channel_->queued_bytes();
  EXPECT_EQ(*channel_->Send(JsonOf(room - 4), 1), Channel::Accepted::kAccepted);
  EXPECT_EQ(*channel_->Send("12", 2), Channel::Accepted::kAcceptedHigh);
  ASSERT_EQ(channel_->queued_bytes(), Channel::kSendBufferLow);
  Send("3", 3);
  EXPECT_TRUE(channel_->Cancel(3));
  RunFor(loop_, milliseconds(5));
  EXPECT_EQ(heard_.order, "") << "as much waits as before";
  EXPECT_TRUE(channel_->Cancel(2));
  ASSERT_TRUE(Until([&] { return heard_.Has('d'); }));
  EXPECT_EQ(heard_.order, "d") << "the peer has read nothing";
}

TEST_F(ChannelTest, APeerThatNeverReadsFillsABoundedQueueAndTheDrainIsTold) {
  Open();
  const std::string json = JsonOf(1023);
  size_t sent = 0, high = 0;
  for (;; ++sent) {
    const absl::StatusOr<Channel::Accepted> accepted = channel_->Send(json, sent);
    if (!accepted.ok()) {
      EXPECT_EQ(ReasonOf(accepted.status()), Reason::kQueueFull);
      break;
    }
    if (*accepted == Channel::Accepted::kAcceptedHigh) ++high;
    if (sent % 64 == 0) RunFor(loop_, milliseconds(0));
  }
  EXPECT_GT(high, 3000u);
  EXPECT_LE(channel_->queued_bytes(), options_.queue_bytes_max);
  EXPECT_EQ(heard_.Count('d'), 0u);
  const std::string all = ReadPeerUntil(sent * 1024);
  ASSERT_TRUE(Until([&] { return heard_.Count('d') == 1; }));
  EXPECT_EQ(all.size(), sent * 1024);
  EXPECT_EQ(heard_.outcomes.size(), sent);
  for (size_t i = 0; i < sent; ++i) ASSERT_EQ(heard_.outcomes[i].tag, i);
  Send("1");
}

TEST_F(ChannelTest, LargeMessagesSurvivePartialWritesAndTheRing) {
  options_.message_bytes_max = 300000;
  options_.queue_bytes_max = 600000;  // the ring holds 1 MiB
  Open();
  std::mt19937 random(4);
  std::string expected, received;
  std::vector<std::string> queued;
  for (int i = 0; i < 200; ++i) {
    std::string json = JsonOf(2 + random() % 299999);
    std::fill(json.begin() + 1, json.end() - 1, static_cast<char>('a' + i % 26));
    ASSERT_TRUE(Until([&] {
      received += ReadPeer().substr();
      return channel_->Send(json, static_cast<uint64_t>(i)).ok();
    }));
    expected += json + '\n';
    queued.push_back(std::move(json));
  }
  ASSERT_TRUE(Until([&] {
    received += ReadPeer();
    return received.size() >= expected.size();
  }));
  EXPECT_TRUE(received == expected);
  ASSERT_TRUE(UntilSent(200));
  for (size_t i = 0; i < 200; ++i) ASSERT_TRUE(heard_.outcomes[i].json == queued[i]) << i;
}

TEST_F(ChannelTest, APeerThatStopsReadingFailsTheQueueAndIsReadToItsEnd) {
  Open();
  shutdown(peer_.get(), SHUT_RD);
  Send("1", 1);
  Send("2", 2);
  ASSERT_TRUE(UntilSent(2));
  EXPECT_EQ(heard_.order, "ssw");
  EXPECT_EQ(heard_.outcomes[0].tag, 1u);
  EXPECT_EQ(ReasonOf(heard_.outcomes[0].status), Reason::kChannelClosed);
  EXPECT_EQ(heard_.outcomes[1].written_bytes, 0u);
  EXPECT_EQ(heard_.outcomes[1].json, "2");
  EXPECT_EQ(Refused("3"), Reason::kChannelClosed);
  Write("\"still heard\"\n");
  ASSERT_TRUE(UntilMessages(1));
  peer_.Close();
  ASSERT_TRUE(UntilClosed());
  EXPECT_TRUE(heard_.closed->ok());
}

TEST_F(ChannelTest, AWriteToAClosedPeerRaisesNoSignal) {
  Open();
  channel_->PauseReading();
  peer_.Close();
  Send("1", 1);
  ASSERT_TRUE(UntilSent(1));
  EXPECT_EQ(ReasonOf(heard_.outcomes[0].status), Reason::kChannelClosed);
}

TEST_F(ChannelTest, APeerThatOnlyStopsWritingGetsWhatWasQueued) {
  Open();
  BlockSocket();
  Send("\"last\"", 2);
  shutdown(peer_.get(), SHUT_WR);
  ASSERT_TRUE(Until([&] { return channel_->state() == Channel::State::kFlushing; }));
  EXPECT_FALSE(heard_.closed.has_value());
  std::string received;
  ASSERT_TRUE(Until([&] {
    received += ReadPeer();
    return heard_.closed.has_value();
  }));
  EXPECT_TRUE(received.ends_with("\n\"last\"\n"));
  EXPECT_TRUE(heard_.outcomes[1].status.ok());
  EXPECT_TRUE(heard_.closed->ok());
}

// --- cancelling ---

TEST_F(ChannelTest, CancelledMessagesAreNeitherWrittenNorTold) {
  Open();
  BlockSocket();
  for (uint64_t tag = 2; tag <= 5; ++tag) Send(fmt::format("{}", tag), tag);
  EXPECT_FALSE(channel_->Cancel(kBlocker)) << "begun";
  EXPECT_FALSE(channel_->Cancel(77));
  EXPECT_TRUE(channel_->Cancel(3));
  EXPECT_FALSE(channel_->Cancel(3));
  EXPECT_TRUE(channel_->Cancel(5));
  std::string received = ReadPeerUntil((1 << 20) + 1 + 4);
  EXPECT_TRUE(received.ends_with("\n2\n4\n"));
  ASSERT_TRUE(UntilSent(3));
  EXPECT_EQ(heard_.outcomes[1].tag, 2u);
  EXPECT_EQ(heard_.outcomes[2].tag, 4u);
  EXPECT_EQ(channel_->queued_messages(), 0u);
  EXPECT_FALSE(channel_->Cancel(4)) << "written";
  RunFor(loop_, milliseconds(10));
  EXPECT_EQ(ReadPeer(), "");
}

TEST_F(ChannelTest, CancellingTheLastMakesRoomAtOnceAndTellsTheDrain) {
  options_.queue_messages_max = 3;
  Open();
  BlockSocket();
  Send(JsonOf(200000), 2);
  Send("3", 3);
  EXPECT_EQ(Refused("4"), Reason::kQueueFull);
  EXPECT_TRUE(channel_->Cancel(2));
  EXPECT_EQ(Refused("4"), Reason::kQueueFull) << "in the middle it keeps its place";
  EXPECT_TRUE(channel_->Cancel(3));
  EXPECT_EQ(channel_->queued_messages(), 1u);
  Send("4", 4);
  EXPECT_TRUE(ReadPeerUntil((1 << 20) + 1 + 2).ends_with("\n4\n"));
}

TEST_F(ChannelTest, CancelOfAllThatWaitsDrainsTheQueue) {
  Open();
  EXPECT_EQ(*channel_->Send(JsonOf(200000), 1), Channel::Accepted::kAcceptedHigh);
  EXPECT_TRUE(channel_->Cancel(1));
  ASSERT_TRUE(Until([&] { return heard_.Count('d') == 1; }));
  EXPECT_EQ(heard_.order, "d");
  EXPECT_EQ(ReadPeer(), "");
}

TEST_F(ChannelTest, CancelOfALongQueueIsFast) {
  Open();
  BlockSocket();
  const size_t count = options_.queue_messages_max - 1;
  for (uint64_t tag = 1; tag <= count; ++tag) Send("1", tag);
  const double before = CpuSeconds();
  for (uint64_t tag = 1; tag <= count; ++tag) ASSERT_TRUE(channel_->Cancel(tag));
  EXPECT_LT(CpuSeconds() - before, 1.0);
  EXPECT_EQ(channel_->queued_messages(), 1u);
}

TEST_F(ChannelTest, WhatIsGivenUpCannotBeCancelledAnyMore) {
  for (const bool by_peer : {false, true}) {
    SCOPED_TRACE(by_peer);
    heard_ = Recorder();
    MakeSocketPair();
    Open();
    if (by_peer) {
      shutdown(peer_.get(), SHUT_RD);
      Send("1", 1);
    } else {
      BlockSocket();
    }
    Send("2", 2);
    Send("3", 3);
    heard_.on_event = [&](char event) {
      if (event == 's') {
        EXPECT_FALSE(channel_->Cancel(3));
      }
    };
    if (!by_peer) {
      channel_->Disconnect(Channel::Mode::kNow);
      EXPECT_FALSE(channel_->Cancel(2));
    }
    ASSERT_TRUE(UntilSent(3)) << "each one is told";
    EXPECT_EQ(heard_.outcomes[2].tag, 3u);
  }
}

// --- disconnecting ---

TEST_F(ChannelTest, FlushWritesTheQueueThenReadsUntilThePeerCloses) {
  Open();
  BlockSocket();
  Send("\"last\"", 2);
  channel_->Disconnect(Channel::Mode::kFlush);
  EXPECT_EQ(channel_->state(), Channel::State::kFlushing);
  EXPECT_EQ(Refused("3"), Reason::kChannelClosed);
  std::string received;
  ASSERT_TRUE(Until([&] {
    received += ReadPeer();
    return peer_saw_end_;
  }));
  EXPECT_TRUE(received.ends_with("\n\"last\"\n"));
  EXPECT_EQ(channel_->state(), Channel::State::kDraining);
  EXPECT_TRUE(heard_.outcomes[1].status.ok());
  Write("\"answer\"\n");
  ASSERT_TRUE(UntilMessages(1));
  EXPECT_FALSE(heard_.closed.has_value());
  peer_.Close();
  ASSERT_TRUE(UntilClosed());
  EXPECT_TRUE(heard_.closed->ok());
}

TEST_F(ChannelTest, FlushOfAnEmptyQueueShutsDownAtTheEndOfTheTurn) {
  Open();
  channel_->Disconnect(Channel::Mode::kFlush);
  EXPECT_EQ(heard_.order, "");
  ASSERT_TRUE(PeerSeesEnd());
  peer_.Close();
  ASSERT_TRUE(UntilClosed());
}

TEST_F(ChannelTest, FlushGivesUpAPeerThatDoesNotReadInTime) {
  options_.flush_ms_max = milliseconds(30);
  options_.drain_ms_max = milliseconds(30);
  Open();
  BlockSocket();
  Send("2", 2);
  channel_->Disconnect(Channel::Mode::kFlush);
  ASSERT_TRUE(UntilClosed());
  EXPECT_EQ(heard_.order, "sswc");
  EXPECT_EQ(ReasonOf(heard_.outcomes[0].status), Reason::kChannelClosed);
  EXPECT_GT(heard_.outcomes[0].written_bytes, 0u);
  EXPECT_EQ(heard_.outcomes[1].written_bytes, 0u);
  EXPECT_THAT(std::string(heard_.outcomes[1].status.message()), HasSubstr("30 ms"));
  EXPECT_TRUE(heard_.closed->ok());
}

TEST_F(ChannelTest, DrainGivesUpAPeerThatNeverCloses) {
  options_.drain_ms_max = milliseconds(30);
  Open();
  channel_->Disconnect(Channel::Mode::kFlush);
  ASSERT_TRUE(UntilClosed());
  EXPECT_TRUE(heard_.closed->ok());
  EXPECT_TRUE(PeerSeesEnd());
}

TEST_F(ChannelTest, TheDrainLimitDoesNotCountWhilePaused) {
  options_.drain_ms_max = milliseconds(30);
  Open();
  channel_->PauseReading();
  channel_->Disconnect(Channel::Mode::kFlush);
  ASSERT_TRUE(PeerSeesEnd());
  Write("\"kept\"\n");
  RunFor(loop_, milliseconds(100));
  EXPECT_EQ(heard_.order, "");
  channel_->ResumeReading();
  ASSERT_TRUE(UntilClosed());
  EXPECT_THAT(heard_.messages, ElementsAre("\"kept\""));
}

TEST_F(ChannelTest, APauseEndsTheDrainLimitThatRunsAlready) {
  options_.drain_ms_max = milliseconds(2000);
  Open();
  channel_->Reference(false);
  channel_->Disconnect(Channel::Mode::kFlush);
  ASSERT_TRUE(Until([&] { return channel_->state() == Channel::State::kDraining; }));
  channel_->PauseReading();
  loop_.Run();  // nothing is left to wait for
  EXPECT_EQ(channel_->state(), Channel::State::kDraining);
}

TEST_F(ChannelTest, NoLimitOutlivesTheChannelsEnd) {
  options_.flush_ms_max = options_.drain_ms_max = milliseconds(100);
  Open();
  channel_->Disconnect(Channel::Mode::kFlush);
  peer_.Close();
  ASSERT_TRUE(UntilClosed());
  loop_.Run();
  EXPECT_EQ(heard_.order, "c");
}

TEST_F(ChannelTest, NowDropsTheQueueButFinishesAFrameThatIsBegunIfItCan) {
  Open();
  BlockSocket();
  Send("2", 2);
  const size_t rest = channel_->queued_bytes() - 2;
  std::string received = ReadPeer();  // makes room in the socket for a part of the rest
  channel_->Disconnect(Channel::Mode::kNow);
  ASSERT_TRUE(UntilSent(2));
  EXPECT_EQ(heard_.order, "ssw");
  EXPECT_GT(heard_.outcomes[0].written_bytes, (1 << 20) + 1 - rest);
  EXPECT_EQ(ReasonOf(heard_.outcomes[1].status), Reason::kChannelClosed);
  EXPECT_EQ(heard_.outcomes[1].written_bytes, 0u);
  ASSERT_TRUE(Until([&] {
    received += ReadPeer();
    return peer_saw_end_;
  }));
  EXPECT_EQ(received.size(), heard_.outcomes[0].written_bytes);
  peer_.Close();
  ASSERT_TRUE(UntilClosed());
}

TEST_F(ChannelTest, NowFinishesABegunFrameWhole) {
  options_.message_bytes_max = 300000;
  Open();
  Send(JsonOf(300000), 1);
  ASSERT_TRUE(Until([&] { return channel_->queued_bytes() < 300000; }));
  Send("2", 2);
  ASSERT_GT(channel_->queued_bytes(), 2u) << "begun and not finished";
  std::string received = ReadPeer();
  channel_->Disconnect(Channel::Mode::kNow);
  ASSERT_TRUE(UntilSent(2));
  EXPECT_TRUE(heard_.outcomes[0].status.ok()) << heard_.outcomes[0].status;
  EXPECT_FALSE(heard_.outcomes[1].status.ok());
  ASSERT_TRUE(Until([&] {
    received += ReadPeer();
    return peer_saw_end_;
  }));
  EXPECT_EQ(received.size(), 300001u);
  EXPECT_EQ(received.back(), '\n');
}

TEST_F(ChannelTest, NowHastensAFlush) {
  Open();
  BlockSocket();
  channel_->Disconnect(Channel::Mode::kFlush);
  RunFor(loop_, milliseconds(10));
  EXPECT_EQ(channel_->state(), Channel::State::kFlushing);
  channel_->Disconnect(Channel::Mode::kNow);
  channel_->Disconnect(Channel::Mode::kFlush);
  ASSERT_TRUE(UntilSent(1));
  EXPECT_FALSE(heard_.outcomes[0].status.ok());
  peer_.Close();
  ASSERT_TRUE(UntilClosed());
}

TEST_F(ChannelTest, ASecondDisconnectDoesNotBeginAgain) {
  Open();
  channel_->Disconnect(Channel::Mode::kFlush);
  ASSERT_TRUE(Until([&] { return channel_->state() == Channel::State::kDraining; }));
  channel_->Disconnect(Channel::Mode::kFlush);
  EXPECT_EQ(channel_->state(), Channel::State::kDraining);
  channel_->Disconnect(Channel::Mode::kNow);
  EXPECT_EQ(channel_->state(), Channel::State::kDraining);
  Write("1\n");
  ASSERT_TRUE(UntilMessages(1));
}

TEST_F(ChannelTest, BothEndsMayDisconnectAtOnce) {
  Open();
  Recorder other_heard;
  absl::StatusOr<StreamMemory> memory = StreamMemory::Allocate(options_.memory_limits());
  ASSERT_TRUE(memory.ok());
  absl::StatusOr<std::unique_ptr<Channel>> other =
      Channel::Open(loop_, peer_.Release(), *memory, options_, other_heard);
  ASSERT_TRUE(other.ok());
  Send("1");
  ASSERT_TRUE((*other)->Send("2", 0).ok());
  channel_->Disconnect(Channel::Mode::kFlush);
  (*other)->Disconnect(Channel::Mode::kFlush);
  ASSERT_TRUE(Until([&] { return heard_.closed && other_heard.closed; }));
  EXPECT_THAT(heard_.messages, ElementsAre("2"));
  EXPECT_THAT(other_heard.messages, ElementsAre("1"));
}

TEST_F(ChannelTest, CloseEndsAtOnceAndTellsAtTheEndOfTheTurn) {
  Open();
  Write("1\n");
  Send("2", 2);
  channel_->Close();
  EXPECT_EQ(channel_->state(), Channel::State::kClosed);
  EXPECT_EQ(heard_.order, "");
  EXPECT_FALSE(channel_->Cancel(2));
  channel_->Close();
  channel_->Disconnect(Channel::Mode::kNow);
  ASSERT_TRUE(UntilClosed());
  EXPECT_TRUE(PeerSeesEnd());
  EXPECT_EQ(heard_.Count('m'), 0u);
  EXPECT_EQ(heard_.order.substr(heard_.order.size() - 3), "swc");
  EXPECT_EQ(ReasonOf(heard_.outcomes[0].status), Reason::kChannelClosed);
  EXPECT_TRUE(heard_.closed->ok());
  RunFor(loop_, milliseconds(5));
  EXPECT_EQ(heard_.Count('c'), 1u);
}

TEST_F(ChannelTest, CloseEndsTheConversationThoughADuplicateIsOpen) {
  Descriptor duplicate(fcntl(ours_.get(), F_DUPFD_CLOEXEC, 0));
  Open();
  channel_->Close();
  EXPECT_TRUE(PeerSeesEnd());
}

TEST_F(ChannelTest, TheDestructorReleasesWithoutAWord) {
  Descriptor duplicate(fcntl(ours_.get(), F_DUPFD_CLOEXEC, 0));
  const int number = ours_.get();
  Open();
  Send("1", 1);
  channel_.reset();
  EXPECT_EQ(fcntl(number, F_GETFD), -1);
  RunFor(loop_, milliseconds(10));
  EXPECT_EQ(heard_.order, "");
  // The conversation goes on with who else holds it.
  ASSERT_EQ(write(duplicate.get(), "2\n", 2), 2);
  EXPECT_EQ(ReadPeer(), "2\n");
  EXPECT_FALSE(peer_saw_end_);
}

TEST_F(ChannelTest, CloseFromInsideAMessageEndsTheBatch) {
  Open();
  heard_.on_event = [&](char event) {
    if (event == 'm') channel_->Close();
  };
  Write("1\n2\n");
  ASSERT_TRUE(UntilClosed());
  EXPECT_EQ(heard_.order, "mrc");
}

// What happens at each event of a conversation, and then the channel is destroyed in that call.
class DestroyTest : public ChannelTest, public testing::WithParamInterface<char> {};

TEST_P(DestroyTest, AListenerMayDestroyTheChannelInAnyCall) {
  options_.drain_ms_max = milliseconds(1);
  Open();
  bool destroyed = false;
  heard_.on_event = [&](char event) {
    if (event != GetParam()) return;
    EXPECT_FALSE(destroyed) << "told " << event << " after the destructor";
    destroyed = true;
    channel_.reset();
  };
  ASSERT_EQ(*channel_->Send(JsonOf(200000), 1), Channel::Accepted::kAcceptedHigh);
  Send("2", 2);
  ASSERT_EQ(send(peer_.get(), "1\nbad\n2\n", 8, 0), 8);
  ASSERT_TRUE(Until([&] {
    ReadPeer();
    return destroyed || (heard_.Count('d') > 0 && heard_.messages.size() == 2);
  }));
  if (!destroyed) channel_->Disconnect(Channel::Mode::kFlush);
  ASSERT_TRUE(Until([&] { return destroyed; }));
  const std::string order = heard_.order;
  RunFor(loop_, milliseconds(5));
  EXPECT_EQ(heard_.order, order);
}

INSTANTIATE_TEST_SUITE_P(EachCall, DestroyTest, testing::Values('m', 'r', 'b', 's', 'w', 'd', 'c'));

class DestroyWhileFailingTest : public ChannelTest, public testing::WithParamInterface<char> {};

TEST_P(DestroyWhileFailingTest, AListenerMayDestroyTheChannelWhileItsQueueFails) {
  Open();
  BlockSocket();
  Send("2", 2);
  bool destroyed = false;
  heard_.on_event = [&](char event) {
    if (event != GetParam()) return;
    destroyed = true;
    channel_.reset();
  };
  Write("{\"half");
  channel_->PauseReading();
  peer_.Close();
  channel_->ResumeReading();
  ASSERT_TRUE(Until([&] { return destroyed; }));
  RunFor(loop_, milliseconds(5));
}

INSTANTIATE_TEST_SUITE_P(EachCall, DestroyWhileFailingTest, testing::Values('s', 'w', 'b', 'c'));

// --- descriptors that travel ---

constexpr std::string_view kAnnounced =
    "{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Socket\",\"msg\":{\"a\":1}}\n";

TEST_F(ChannelTest, AHandleIsClosedRefusedOnceAndTold) {
  Open();
  const int before = OpenDescriptors();
  WriteWithDescriptors(kAnnounced, {STDERR_FILENO});
  Write("2\n");
  ASSERT_TRUE(UntilMessages(1));
  EXPECT_THAT(heard_.messages, ElementsAre("2"));
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_EQ(heard_.bad[0].reason, Reason::kHandleUnsupported);
  EXPECT_THAT(heard_.bad[0].text, HasSubstr("cannot travel"));
  EXPECT_EQ(heard_.bad[0].size_bytes, kAnnounced.size() - 1);
  EXPECT_EQ(ReadPeerUntil(1), HandleNack());
  RunFor(loop_, milliseconds(10));
  EXPECT_EQ(ReadPeer(), "") << "exactly one";
  EXPECT_EQ(OpenDescriptors(), before);
  EXPECT_EQ(heard_.Count('s'), 0u) << "the channel's own frames are told to nobody";
}

TEST_F(ChannelTest, AHandleInDialectDekaIsRefusedToo) {
  options_.dialect = Dialect::kDeka;
  Open();
  WriteWithDescriptors(kAnnounced, {STDERR_FILENO});
  EXPECT_EQ(ReadPeerUntil(1), HandleNack());
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_EQ(heard_.bad[0].reason, Reason::kHandleUnsupported);
  EXPECT_TRUE(heard_.messages.empty());
}

TEST_F(ChannelTest, AnAnnouncementWithoutADescriptorIsRefusedAndTold) {
  Open();
  Write(kAnnounced);
  EXPECT_EQ(ReadPeerUntil(1), HandleNack());
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_EQ(heard_.bad[0].reason, Reason::kHandleUnsupported);
  EXPECT_THAT(heard_.bad[0].text, HasSubstr("sent none"));
}

TEST_F(ChannelTest, ADescriptorThatNoFrameAnnouncesIsClosedAndTold) {
  Open();
  const int before = OpenDescriptors();
  WriteWithDescriptors("1\n", {STDERR_FILENO, STDERR_FILENO});
  ASSERT_TRUE(Until([&] { return heard_.bad.size() == 1; }));
  EXPECT_EQ(heard_.bad[0].reason, Reason::kHandleUnsupported);
  EXPECT_THAT(heard_.bad[0].text, HasSubstr("2 descriptors"));
  EXPECT_EQ(heard_.bad[0].size_bytes, 0u);
  EXPECT_THAT(heard_.messages, ElementsAre("1"));
  EXPECT_EQ(OpenDescriptors(), before);
  Write(kAnnounced);
  ASSERT_TRUE(Until([&] { return heard_.bad.size() == 2; }));
  EXPECT_THAT(heard_.bad[1].text, HasSubstr("sent none")) << "a later frame is not its frame";
  EXPECT_EQ(ReadPeerUntil(1), HandleNack()) << "Node ends on an answer that it does not expect";
  RunFor(loop_, milliseconds(10));
  EXPECT_EQ(ReadPeer(), "");
}

TEST_F(ChannelTest, ADescriptorIsMatchedToItsFrameThoughOthersShareTheRead) {
  Open();
  channel_->PauseReading();
  Write("1\n");
  WriteWithDescriptors(kAnnounced.substr(0, 10), {STDERR_FILENO});
  Write(kAnnounced.substr(10));
  Write("2\n");
  channel_->ResumeReading();
  ASSERT_TRUE(UntilMessages(2));
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_THAT(heard_.bad[0].text, HasSubstr("cannot travel"));
  EXPECT_EQ(heard_.order, "mrbmr") << "the kernel ends a read behind the descriptor";
}

TEST_F(ChannelTest, ADescriptorIsMatchedToItsFrameThoughWhatIsLeftIsMoved) {
  Open();
  channel_->PauseReading();
  // More than one read, so that what is left behind it is moved to the first page.
  Write(JsonOf(StreamMemory::kReadBytesMax + 1000) + "\n2\n3\n");
  WriteWithDescriptors(kAnnounced, {STDERR_FILENO});
  heard_.on_event = [&](char event) {
    if (event == 'm' && heard_.messages.back() == "2") channel_->PauseReading();
  };
  channel_->ResumeReading();
  ASSERT_TRUE(UntilMessages(2));
  RunFor(loop_, milliseconds(5));
  EXPECT_EQ(memory_->control().inbox_shift % memory_->control().inbox_capacity,
            memory_->control().inbox_capacity - memory_->progress().consumed)
      << "moved";
  channel_->ResumeReading();
  ASSERT_TRUE(Until([&] { return heard_.Has('b'); }));
  EXPECT_EQ(heard_.messages.back(), "3");
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_THAT(heard_.bad[0].text, HasSubstr("cannot travel"));
}

TEST_F(ChannelTest, ADescriptorAtTheEndOfTheStreamIsTold) {
  Open();
  WriteWithDescriptors("1", {STDERR_FILENO});
  peer_.Close();
  ASSERT_TRUE(UntilClosed());
  ASSERT_EQ(heard_.bad.size(), 2u);
  EXPECT_EQ(heard_.bad[0].reason, Reason::kFrameTruncated);
  EXPECT_EQ(heard_.bad[1].reason, Reason::kHandleUnsupported);
}

TEST_F(ChannelTest, AsManyDescriptorsAsTheKernelPassesAreClosed) {
  Open();
  const int before = OpenDescriptors();
  WriteWithDescriptors("1\n", std::vector<int>(253, STDERR_FILENO));
  ASSERT_TRUE(Until([&] { return heard_.bad.size() == 1; }));
  EXPECT_THAT(heard_.bad[0].text, HasSubstr("253 descriptors"));
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(ChannelTest, ADescriptorThatThisProcessHasNoNumberForIsToldAndNothingElseIsLost) {
  Open();
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  rlimit none = limit;
  none.rlim_cur = 0;
  WriteWithDescriptors(kAnnounced, {STDERR_FILENO});
  Write("2\n");
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const bool arrived = UntilMessages(1);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  ASSERT_TRUE(arrived);
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_EQ(heard_.bad[0].reason, Reason::kHandleUnsupported);
  EXPECT_EQ(ReadPeerUntil(1), HandleNack());
}

TEST_F(ChannelTest, ADescriptorThatNoFrameAnnouncesIsToldThoughThisProcessHasNoNumberForIt) {
  Open();
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  rlimit none = limit;
  none.rlim_cur = 0;
  WriteWithDescriptors("1\n", {STDERR_FILENO});
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const bool told = Until([&] { return heard_.bad.size() == 1; });
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  ASSERT_TRUE(told);
  EXPECT_EQ(heard_.bad[0].reason, Reason::kHandleUnsupported);
  EXPECT_EQ(heard_.bad[0].size_bytes, 0u);
  EXPECT_THAT(heard_.messages, ElementsAre("1"));
}

TEST_F(ChannelTest, AHandleWithAMessageThatIsTooLongIsAnsweredToo) {
  options_.message_bytes_max = 100;
  Open();
  for (size_t size : {size_t{200}, size_t{100000}}) {
    SCOPED_TRACE(size);
    heard_.bad.clear();
    Write(fmt::format("{{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Socket\",\"msg\":{}}}\n",
                      JsonOf(size)));
    ASSERT_TRUE(Until([&] { return heard_.bad.size() == 1; }));
    EXPECT_EQ(ReadPeerUntil(1), HandleNack());
  }
}

TEST_F(ChannelTest, AHandleWithAMessageThatIsTooLongIsToldOnce) {
  options_.message_bytes_max = 100;
  Open();
  const int before = OpenDescriptors();
  WriteWithDescriptors(
      fmt::format("{{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Socket\",\"msg\":{}}}\n", JsonOf(200)),
      {STDERR_FILENO});
  Write("1\n");
  ASSERT_TRUE(UntilMessages(1));
  ASSERT_EQ(heard_.bad.size(), 1u);
  EXPECT_EQ(heard_.bad[0].reason, Reason::kMessageTooLarge);
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(ChannelTest, AHandleThatCannotBeAnsweredAnyMoreIsOnlyTold) {
  Open();
  channel_->Disconnect(Channel::Mode::kFlush);
  ASSERT_TRUE(Until([&] { return channel_->state() == Channel::State::kDraining; }));
  WriteWithDescriptors(kAnnounced, {STDERR_FILENO});
  peer_.Close();
  ASSERT_TRUE(UntilClosed());
  EXPECT_EQ(heard_.order, "brc") << "nothing was queued, so no write has ended";
  EXPECT_EQ(heard_.bad[0].reason, Reason::kHandleUnsupported);
}

TEST_F(ChannelTest, ARefusalNeedsNoRoomInAFullQueue) {
  options_.queue_messages_max = 2;
  Open();
  BlockSocket();
  Send("2");
  EXPECT_EQ(Refused("3"), Reason::kQueueFull);
  Write(kAnnounced);
  const std::string received = ReadPeerUntil((1 << 20) + 1 + 2 + HandleNack().size());
  EXPECT_TRUE(received.ends_with("\n2\n" + std::string(HandleNack())));
}

TEST_F(ChannelTest, APeerThatDoesNotReadItsRefusalsIsNotReadEither) {
  options_.message_bytes_max = 1 << 20;
  Open();
  BlockSocket();
  std::string flood;
  for (int i = 0; i < 20000; ++i) flood += kAnnounced;
  size_t written = 0;
  ASSERT_TRUE(Until([&] {
    written += WriteUntilBlocked(std::string_view(flood).substr(written));
    return heard_.bad.size() == StreamMemory::kOwnSendsMax;
  }));
  RunFor(loop_, milliseconds(20));
  EXPECT_EQ(heard_.bad.size(), StreamMemory::kOwnSendsMax);
  written += WriteUntilBlocked(std::string_view(flood).substr(written));
  EXPECT_LT(written, flood.size());
  // It goes on as soon as the peer reads.
  std::string received;
  ASSERT_TRUE(Until([&] {
    received += ReadPeer();
    written += WriteUntilBlocked(std::string_view(flood).substr(written));
    return heard_.bad.size() == 20000;
  }));
  received += ReadPeerUntil((1 << 20) + 1 + 20000 * HandleNack().size() - received.size());
  EXPECT_EQ(received.size(), (1 << 20) + 1 + 20000 * HandleNack().size());
}

TEST_F(ChannelTest, WhatWaitsBehindRefusalsIsToldWhenThePeerHasReadThem) {
  Open();
  BlockSocket();
  // All of it comes before the peer reads, and nothing after.
  std::string flood;
  for (size_t i = 0; i <= StreamMemory::kOwnSendsMax; ++i) flood += kAnnounced;
  flood += "1\n";
  ASSERT_LT(flood.size(), size_t{100000}) << "less than a socket holds";
  ASSERT_EQ(WriteUntilBlocked(flood), flood.size());
  ASSERT_TRUE(Until([&] { return heard_.bad.size() == StreamMemory::kOwnSendsMax; }));
  const size_t nacks = StreamMemory::kOwnSendsMax + 1;
  EXPECT_EQ(ReadPeerUntil((1 << 20) + 1 + nacks * HandleNack().size()).size(),
            (1 << 20) + 1 + nacks * HandleNack().size());
  ASSERT_TRUE(UntilMessages(1));
}

// --- the loop and memory ---

TEST_F(ChannelTest, AnOpenChannelKeepsTheLoopRunningUnlessUnreferenced) {
  Open();
  channel_->Reference(false);
  loop_.Run();
  // While something waits to be written it does.
  BlockSocket();
  Timer timer(loop_);
  timer.Start(
      milliseconds(20), [&] { ReadPeer(); }, /*referenced=*/false);
  heard_.on_event = [&](char event) {
    if (event == 'w') loop_.Stop();
  };
  std::optional<TurnTask> reader;
  reader.emplace(loop_, [&] {
    ReadPeer();
    if (channel_->queued_messages() > 0) reader->Schedule();
  });
  reader->Schedule();
  loop_.Run();
  EXPECT_EQ(heard_.outcomes.size(), 1u);
  heard_.on_event = nullptr;
  loop_.Run();

  channel_->Reference(true);
  timer.Start(
      milliseconds(20), [&] { channel_->Close(); }, /*referenced=*/false);
  loop_.Run();
  EXPECT_TRUE(heard_.closed.has_value());
}

TEST_F(ChannelTest, UnreferencedItKeepsTheLoopRunningUntilAllIsWritten) {
  MakeSocketSmall();
  Open();
  channel_->Reference(false);
  // Fills the socket to its brim: the last one is not begun.
  while (channel_->queued_messages() == 0) {
    Send("1", 1);
    uv_run(loop_.uv(), UV_RUN_NOWAIT);
  }
  EXPECT_TRUE(channel_->Cancel(1));
  loop_.Run();
  Send("2", 2);
  std::thread peer([this] {
    for (std::string received; !received.ends_with("2\n");) {
      pollfd ready{.fd = peer_.get(), .events = POLLIN, .revents = 0};
      if (poll(&ready, 1, 10000) != 1) break;
      received += ReadPeer();
    }
  });
  loop_.Run();
  EXPECT_EQ(heard_.outcomes.back().tag, 2u);
  peer.join();
}

TEST_F(ChannelTest, GoesOnInTheMemoryOfAnotherChannel) {
  Open();
  Write("1\n[2,3]\n");
  ASSERT_TRUE(UntilMessages(2));
  Send("4");
  EXPECT_EQ(ReadPeerUntil(2), "4\n");
  ASSERT_TRUE(UntilSent(1));
  channel_.reset();

  MakeSocketPair();
  OpenInMemory();
  EXPECT_EQ(channel_->queued_bytes(), 0u);
  Write("5\n");
  ASSERT_TRUE(UntilMessages(3));
  EXPECT_EQ(heard_.messages.back(), "5");
  Send("6", 6);
  EXPECT_EQ(ReadPeerUntil(2), "6\n");
  ASSERT_TRUE(UntilSent(2));
  EXPECT_EQ(heard_.outcomes.back().tag, 6u);
}

// Says nothing and keeps nothing.
class Echo : public Channel::Listener {
 public:
  void OnMessage(Message message) override {
    ++messages;
    if (channel != nullptr) ok = ok && channel->Send(message.json, 1).ok();
  }
  void OnBadFrame(BadFrame) override { ok = false; }
  void OnSent(Sent sent) override { ok = ok && sent.status.ok(); }
  void OnClosed(absl::Status) override {}
  Channel* channel = nullptr;
  size_t messages = 0;
  bool ok = true;
};

TEST_F(ChannelTest, AllocatesNothingForAMessage) {
  for (Dialect dialect : {Dialect::kNode, Dialect::kDeka}) {
    SCOPED_TRACE(DialectName(dialect));
    options_.dialect = dialect;
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    Echo echo;
    absl::StatusOr<StreamMemory> memory = StreamMemory::Allocate(options_.memory_limits());
    ASSERT_TRUE(memory.ok());
    absl::StatusOr<std::unique_ptr<Channel>> channel =
        Channel::Open(loop_, ends[0], *memory, options_, echo);
    ASSERT_TRUE(channel.ok());
    echo.channel = channel->get();
    Descriptor peer(ends[1]);
    const FrameParts parts = Codec::EncodeAs(dialect, "{\"n\":[1,2,3],\"text\":\"hello world\"}");
    const std::string frame = fmt::format("{}{}{}", parts.prefix, parts.value, parts.suffix);
    char bytes[4096];
    size_t before = 0;
    for (int i = 0; i < 1100; ++i) {
      if (i == 100) before = allocations;
      if (write(peer.get(), frame.data(), frame.size()) < 0) break;
      size_t received = 0;
      while (received < frame.size()) {
        uv_run(loop_.uv(), UV_RUN_NOWAIT);
        const ssize_t count = read(peer.get(), bytes, sizeof(bytes));
        if (count > 0) received += static_cast<size_t>(count);
      }
    }
    EXPECT_EQ(allocations - before, 0u);
    EXPECT_EQ(echo.messages, 1100u);
    EXPECT_TRUE(echo.ok);
  }
}

TEST_F(ChannelTest, AnIdleChannelGivesItsPagesBack) {
  Open();
  EXPECT_EQ(ResidentPages(*memory_), 1u);
  Write(JsonOf(1 << 20) + "\n");
  ASSERT_TRUE(UntilMessages(1));
  Send(JsonOf(1 << 20));
  ReadPeerUntil((1 << 20) + 1);
  EXPECT_GT(ResidentPages(*memory_), 500u);
  ASSERT_TRUE(Until([&] { return ResidentPages(*memory_) == 1; }));
  Write("1\n");
  ASSERT_TRUE(UntilMessages(2));
  EXPECT_LE(ResidentPages(*memory_), 2u);
}

TEST_F(ChannelTest, AFloodOfSmallMessagesStaysInTheFirstPages) {
  Open();
  std::string flood;
  while (flood.size() < (8 << 20)) flood += "\"0123456789012345678901234567890\"\n";
  Write(flood);
  ASSERT_TRUE(UntilMessages(flood.size() / 34));
  // One read, and what is left of the read before it.
  EXPECT_LE(ResidentPages(*memory_), 2 + 2 * (StreamMemory::kReadBytesMax / 4096));
}

// --- what another process has left ---

class ChannelFoundTest : public ChannelTest {
 protected:
  ChannelFoundTest() {
    memory_.emplace(*StreamMemory::Allocate(options_.memory_limits()));
    outbox_.emplace(*memory_);
  }

  void Accept(std::string_view json, uint64_t tag) {
    outbox_->Stage({.prefix = {}, .value = json, .suffix = "\n"});
    outbox_->Commit(tag, Outbox::Send::State::kQueued);
  }

  // As sendmmsg does it.
  void WriteBytes(std::string_view bytes) {
    EXPECT_EQ(send(ours_.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    memory_->control().send.Advance(static_cast<uint32_t>(bytes.size()));
  }

  std::optional<Outbox> outbox_;
};

TEST_F(ChannelFoundTest, WhatWasWrittenAndNotToldIsToldThoughNothingIsLeftToWrite) {
  Accept("1", 1);
  Accept("22", 2);
  WriteBytes("1\n22\n");
  OpenInMemory();
  ASSERT_TRUE(UntilSent(2));
  EXPECT_EQ(heard_.outcomes[0].tag, 1u);
  EXPECT_EQ(heard_.outcomes[1].json, "22");
  EXPECT_TRUE(heard_.outcomes[1].status.ok());
  Send("3");
  EXPECT_EQ(ReadPeerUntil(7), "1\n22\n3\n");
}

TEST_F(ChannelFoundTest, AFrameThatIsPartlyWrittenIsFinishedAndThoseBeforeItAreTold) {
  Accept("1", 1);
  Accept("2222", 2);
  WriteBytes("1\n22");
  OpenInMemory();
  channel_->Disconnect(Channel::Mode::kNow);
  ASSERT_TRUE(UntilSent(2));
  EXPECT_TRUE(heard_.outcomes[0].status.ok());
  EXPECT_TRUE(heard_.outcomes[1].status.ok());
  EXPECT_EQ(ReadPeerUntil(7), "1\n2222\n");
}

TEST_F(ChannelFoundTest, WhatStandsBehindACancelledFrameIsNotWrittenTwice) {
  Accept("1", 1);
  Accept("2222", 2);
  ASSERT_TRUE(outbox_->Cancel(1));
  WriteBytes("22");
  OpenInMemory();
  ASSERT_TRUE(UntilSent(1));
  EXPECT_EQ(heard_.outcomes[0].tag, 2u);
  Send("3");
  EXPECT_EQ(ReadPeerUntil(7), "2222\n3\n");
}

TEST_F(ChannelFoundTest, AllBehindACancelledFrameIsWritten) {
  Accept("1", 1);
  Accept("2222", 2);
  ASSERT_TRUE(outbox_->Cancel(1));
  WriteBytes("2222\n");
  OpenInMemory();
  ASSERT_TRUE(UntilSent(1));
  EXPECT_EQ(heard_.outcomes[0].tag, 2u);
  Send("3");
  EXPECT_EQ(ReadPeerUntil(7), "2222\n3\n");
}

// --- opening ---

TEST_F(ChannelTest, LimitsThatDoNotFitAreRefusedByName) {
  absl::StatusOr<StreamMemory> memory = StreamMemory::Allocate({});
  ASSERT_TRUE(memory.ok());
  const auto refused = [&](Channel::Options options) {
    const auto channel = Channel::Open(loop_, ours_.get(), *memory, options, heard_);
    EXPECT_EQ(ReasonOf(channel.status()), Reason::kInvalidArgument);
    return std::string(channel.status().message());
  };
  EXPECT_THAT(refused({.message_bytes_max = 0}), HasSubstr("message_bytes_max"));
  EXPECT_THAT(refused({.message_bytes_max = (64 << 20) + 1, .queue_bytes_max = 1 << 30}),
              HasSubstr("message_bytes_max"));
  EXPECT_THAT(refused({.message_bytes_max = 1000, .queue_bytes_max = 999}),
              HasSubstr("queue_bytes_max"));
  EXPECT_THAT(refused({.queue_messages_max = 0}), HasSubstr("queue_messages_max"));
  EXPECT_THAT(refused({.message_bytes_max = 2 << 20}), HasSubstr("memory"));
  EXPECT_NE(fcntl(ours_.get(), F_GETFD), -1) << "the socket stays the caller's";
}

TEST_F(ChannelTest, TheLargestMessageLimitWorks) {
  options_.message_bytes_max = Channel::kMessageBytesCeiling;
  options_.queue_bytes_max = Channel::kMessageBytesCeiling;
  Open();
  const std::string json = JsonOf(Channel::kMessageBytesCeiling);
  Write(json + "\n");
  ASSERT_TRUE(UntilMessages(1));
  EXPECT_TRUE(heard_.messages[0] == json);
  Send(json);
  EXPECT_TRUE(ReadPeerUntil(json.size() + 1) == json + "\n");
}

TEST_F(ChannelTest, ADescriptorThatCannotBeWatchedIsRefused) {
  absl::StatusOr<StreamMemory> memory = StreamMemory::Allocate({});
  ASSERT_TRUE(memory.ok());
  const Descriptor file(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  const auto channel = Channel::Open(loop_, file.get(), *memory, options_, heard_);
  EXPECT_EQ(ReasonOf(channel.status()), Reason::kInvalidArgument);
  EXPECT_NE(fcntl(file.get(), F_GETFD), -1);
}

}  // namespace
}  // namespace deka::ipc
