#include "ipc/dialect.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ipc/error.h"

namespace deka::ipc {
namespace {

constexpr size_t kBytesMax = 1000;
constexpr size_t kDepthMax = 256;

const Codec kDeka(Dialect::kDeka, kBytesMax, kDepthMax);
const Codec kNode(Dialect::kNode, kBytesMax, kDepthMax);

std::string Written(const FrameParts& frame) {
  return std::string(frame.prefix).append(frame.value).append(frame.suffix);
}

std::string WithoutBreak(std::string frame) {
  EXPECT_EQ(frame.back(), '\n');
  frame.pop_back();
  return frame;
}

std::string Nested(size_t levels) { return std::string(levels, '[') + std::string(levels, ']'); }

// The message of a line that is one; else what is wrong with it.
std::string Message(const Codec& codec, std::string_view line) {
  const absl::StatusOr<Line> decoded = codec.Decode(line);
  if (!decoded.ok()) return decoded.status().ToString();
  EXPECT_FALSE(decoded->internal) << line;
  EXPECT_FALSE(decoded->handle_announced) << line;
  EXPECT_GE(decoded->value.data(), line.data());
  EXPECT_LE(decoded->value.data() + decoded->value.size(), line.data() + line.size());
  return std::string(decoded->value);
}

std::optional<Reason> Refusal(const Codec& codec, std::string_view line) {
  return ReasonOf(codec.Decode(line).status());
}

TEST(DialectTest, NamesReadBack) {
  EXPECT_EQ(DialectName(Dialect::kDeka), "deka");
  EXPECT_EQ(DialectName(Dialect::kNode), "node");
  EXPECT_EQ(DialectFromName("deka"), Dialect::kDeka);
  EXPECT_EQ(DialectFromName("node"), Dialect::kNode);
  EXPECT_EQ(DialectFromName("Node"), std::nullopt);
  EXPECT_EQ(DialectFromName(""), std::nullopt);
}

TEST(CodecTest, WritesTheBytesOfEachDialect) {
  EXPECT_EQ(Written(kDeka.Encode("[1]")), "{\"cmd\":\"NODE_HANDLE\",\"msg\":[1]}\n");
  EXPECT_EQ(Written(kNode.Encode("[1]")), "[1]\n");
  EXPECT_EQ(Codec::EncodeAs(Dialect::kDeka, "7").size(), 30u);
  EXPECT_LE(Codec::EncodeAs(Dialect::kDeka, "").size(), kEnvelopeBytesMax);
}

TEST(CodecTest, EveryKindOfValueGoesThroughUntouched) {
  for (const std::string value : {"null",
                                  "true",
                                  "false",
                                  "0",
                                  "-1.50",
                                  "1e20",
                                  "123456789012345678901234567890",
                                  "1e999",
                                  "\"\"",
                                  R"("\ud800")",
                                  R"("\u0000\n\"")",
                                  "\"\xf0\x9f\x98\x80\"",
                                  "[]",
                                  "{}",
                                  "[ 1 , 2 ]",
                                  R"({"a":1,"a":2})",
                                  R"({"cmd":"run"})",
                                  R"({"cmd":"NODE_"})",
                                  R"({"cmd":5})",
                                  R"({"msg":{"cmd":"NODE_HANDLE","type":"net.Socket"}})"}) {
    for (const Codec& codec : {kDeka, kNode}) {
      EXPECT_EQ(Message(codec, WithoutBreak(Written(codec.Encode(value)))), value);
      EXPECT_TRUE(codec.Check(value).ok()) << codec.Check(value);
    }
  }
}

TEST(CodecTest, WhiteSpaceAroundAValueIsNoPartOfIt) {
  EXPECT_EQ(Message(kNode, " \t{\"a\": 1} \r"), "{\"a\": 1}");
  EXPECT_EQ(Message(kDeka, " { \"cmd\" : \"NODE_HANDLE\" , \"msg\" :  [ 1 ]  } \r"), "[ 1 ]");
}

TEST(CodecTest, MembersOfTheEnvelopeStandInAnyOrder) {
  EXPECT_EQ(Message(kDeka, R"({"msg":{"a":[1]},"cmd":"NODE_HANDLE"})"), R"({"a":[1]})");
  EXPECT_EQ(Message(kDeka, R"({"id":[{}],"msg":2,"x":null,"cmd":"NODE_HANDLE","y":{"msg":3}})"),
            "2");
  EXPECT_EQ(Message(kDeka, R"({"\u0063md":"NODE_H\u0041NDLE","msg":1})"), "1");
  EXPECT_EQ(Message(kDeka, R"({"cmd":"NODE_HANDLE","msg":1,"msg":2})"), "2");
  EXPECT_EQ(Message(kDeka, R"({"cmd":"NODE_HANDLE","msg":1,"type":null})"), "1");
}

TEST(CodecTest, DekaAsksForTheEnvelope) {
  for (const char* line :
       {"1", "null", "\"NODE_HANDLE\"", "[]", "{}", R"({"a":1})", R"([{"cmd":"NODE_HANDLE"}])",
        R"({"cmd":"NODE_HANDLE"})", R"({"msg":1})", R"({"cmd":"run","msg":1})",
        R"({"cmd":"NODE_","msg":1})", R"({"cmd":1,"msg":1})", R"({"cmd":"node_handle","msg":1})",
        R"({"x":{"cmd":"NODE_HANDLE","msg":1}})", R"({"cmd":["NODE_HANDLE"],"msg":1})"}) {
    EXPECT_EQ(Refusal(kDeka, line), Reason::kEnvelopeMissing) << line;
  }
  const std::string message(kDeka.Decode("{\"a\":1}").status().message());
  EXPECT_NE(message.find(R"({"cmd":"NODE_HANDLE","msg":<value>})"), std::string::npos) << message;
  EXPECT_NE(message.find("no member \"cmd\""), std::string::npos) << message;
  EXPECT_NE(message.find("dialect node"), std::string::npos) << message;
}

TEST(CodecTest, SaysWhichByteOfALineIsNoJson) {
  const std::string nul("{\"a\":\"\0\"}", 9);
  for (const Codec& codec : {kDeka, kNode}) {
    for (const auto& [line, offset] : std::vector<std::pair<std::string, std::string>>{
             {"", "0"},
             {"\r", "1"},
             {"hello", "0"},
             {"undefined", "0"},
             {"{\"cmd\":\"NODE_HANDLE\",\"msg\":}", "27"},
             {"{\"a\":\"\xff\"}", "6"},
             {nul, "6"},
             {"{} {}", "3"},
             {"\x02{\"cmd\":\"NODE_CLUSTER\"}", "0"}}) {
      const absl::Status status = codec.Decode(line).status();
      EXPECT_EQ(ReasonOf(status), Reason::kInvalidJson) << line;
      EXPECT_EQ(MetadataOf(status, "offset"), offset) << line << status;
    }
  }
}

TEST(CodecTest, LimitsTheValueAndNotItsEnvelope) {
  const std::string at_limit = "\"" + std::string(kBytesMax - 2, 'x') + "\"";
  const std::string past = "\"" + std::string(kBytesMax - 1, 'x') + "\"";
  for (const Codec& codec : {kDeka, kNode}) {
    EXPECT_EQ(Message(codec, WithoutBreak(Written(codec.Encode(at_limit)))), at_limit);
    EXPECT_TRUE(codec.Check(at_limit).ok());
    for (const absl::Status& status :
         {codec.Decode(WithoutBreak(Written(codec.Encode(past)))).status(), codec.Check(past)}) {
      EXPECT_EQ(ReasonOf(status), Reason::kMessageTooLarge);
      EXPECT_EQ(MetadataOf(status, "limit"), "1000");
      EXPECT_NE(std::string(status.message()).find("1001 bytes"), std::string::npos) << status;
    }
  }
  const std::string spaces(kEnvelopeBytesMax, ' ');
  EXPECT_EQ(Message(kNode, spaces + at_limit), at_limit);
}

TEST(CodecTest, LimitsTheDepthOfTheValue) {
  for (const Codec& codec : {kDeka, kNode}) {
    EXPECT_EQ(Message(codec, WithoutBreak(Written(codec.Encode(Nested(256))))), Nested(256));
    EXPECT_TRUE(codec.Check(Nested(256)).ok());
    for (const size_t levels : {257, 10000}) {
      const Codec roomy(codec.dialect(), 100000, kDepthMax);
      EXPECT_EQ(Refusal(roomy, WithoutBreak(Written(codec.Encode(Nested(levels))))),
                Reason::kInvalidJson);
      EXPECT_EQ(ReasonOf(roomy.Check(Nested(levels))), Reason::kInvalidJson);
    }
  }
}

TEST(CodecTest, KnowsNodesOwnMessages) {
  const std::string long_command = "{\"cmd\":\"NODE_" + std::string(200, 'X') + "\"}";
  for (const std::string& line :
       {std::string(R"({"cmd":"NODE_CLUSTER","act":"online"})"), std::string(R"({"cmd":"NODE_F"})"),
        std::string(R"({"cmd":"NODE_HANDLE_ACK"})"), std::string(R"({"cmd":"NODE_HANDLE_NACK"})"),
        std::string(R"({"\u0063md":"\u004e\u004f\u0044\u0045\u005f\u0041"})"), long_command}) {
    for (const Codec& codec : {kDeka, kNode}) {
      const absl::StatusOr<Line> decoded = codec.Decode(" " + line);
      ASSERT_TRUE(decoded.ok()) << decoded.status();
      EXPECT_TRUE(decoded->internal) << line;
      EXPECT_FALSE(decoded->handle_announced) << line;
    }
    const std::string spaced = line + " ";
    EXPECT_EQ(kNode.Decode(spaced)->value, line);
  }
  EXPECT_TRUE(kNode.Decode(R"({"cmd":"NODE_HANDLE","msg":1})")->internal);
  EXPECT_FALSE(kDeka.Decode(R"({"cmd":"NODE_HANDLE","msg":1})")->internal);
  EXPECT_FALSE(kNode.Decode(R"({"cmd":"NODE_"})")->internal);
  EXPECT_FALSE(kNode.Decode(R"({"x":{"cmd":"NODE_A"}})")->internal);
}

TEST(CodecTest, SeesAHandleAnnounced) {
  for (const Codec& codec : {kDeka, kNode}) {
    const std::string line = R"({"cmd":"NODE_HANDLE","type":"net.Socket","msg":{"a":1}})";
    absl::StatusOr<Line> decoded = codec.Decode(line);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_TRUE(decoded->handle_announced);
    EXPECT_FALSE(decoded->internal);
    EXPECT_EQ(decoded->value, R"({"a":1})");

    const std::string bare = R"({"type":"net.Server","cmd":"NODE_HANDLE"})";
    decoded = codec.Decode(bare);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_TRUE(decoded->handle_announced);
    EXPECT_EQ(decoded->value, "");
  }
  EXPECT_FALSE(kNode.Decode(R"({"cmd":"NODE_HANDLE","type":1})")->handle_announced);
  EXPECT_FALSE(kNode.Decode(R"({"cmd":"run","type":"net.Socket"})")->handle_announced);
}

TEST(CodecTest, RefusesToSendWhatWouldEndANodeChild) {
  for (const std::string value :
       {R"({"cmd":"NODE_HANDLE"})", R"({"cmd":"NODE_HANDLE","type":"net.Socket","msg":1})",
        R"({"cmd":"NODE_HANDLE_ACK"})", R"({"cmd":"NODE_HANDLE_NACK"})",
        R"({"a":1,"\u0063md":"NODE_HANDLE\u005fACK"})", R"({"cmd":1,"cmd":"NODE_HANDLE"})"}) {
    EXPECT_EQ(ReasonOf(kNode.Check(value)), Reason::kReservedMessage) << value;
    EXPECT_TRUE(kDeka.Check(value).ok()) << "it travels in an envelope: " << value;
  }
  for (const std::string value :
       {R"({"cmd":"NODE_CLUSTER"})", R"({"cmd":"NODE_HANDLE_ACK2"})",
        R"({"cmd":"NODE_HANDLE\u005fNACK2"})", R"({"cmd":"NODE_HANDLE","cmd":1})",
        R"({"x":{"cmd":"NODE_HANDLE"}})", R"([{"cmd":"NODE_HANDLE"}])", R"("NODE_HANDLE")"}) {
    EXPECT_TRUE(kNode.Check(value).ok()) << value;
  }
}

TEST(CodecTest, RefusesToSendWhatIsNoJson) {
  for (const Codec& codec : {kDeka, kNode}) {
    EXPECT_EQ(ReasonOf(codec.Check("")), Reason::kInvalidJson);
    const absl::Status status = codec.Check("{\"a\":x}");
    EXPECT_EQ(ReasonOf(status), Reason::kInvalidJson);
    EXPECT_EQ(MetadataOf(status, "offset"), "5");
  }
}

TEST(CodecTest, TheNackIsOneOfNodesOwnMessages) {
  EXPECT_EQ(HandleNack(), "{\"cmd\":\"NODE_HANDLE_NACK\"}\n");
  EXPECT_TRUE(kNode.Decode(WithoutBreak(std::string(HandleNack())))->internal);
}

TEST(ChannelEnvironmentTest, NamesTheChannel) {
  EXPECT_EQ(ChannelEnvironment({"A=1"}, Dialect::kDeka, 3),
            (std::vector<std::string>{"A=1", "DEKA_IPC_ENABLED=1", "DEKA_IPC_FD=3"}));
  EXPECT_EQ(
      ChannelEnvironment({}, Dialect::kNode, 12),
      (std::vector<std::string>{"NODE_CHANNEL_FD=12", "NODE_CHANNEL_SERIALIZATION_MODE=json"}));
}

TEST(ChannelEnvironmentTest, ReplacesStaleVariablesOfEitherDialect) {
  const std::vector<std::string> stale = {"NODE_CHANNEL_FD=9",
                                          "PATH=/bin",
                                          "NODE_CHANNEL_SERIALIZATION_MODE=advanced",
                                          "DEKA_IPC_FD=8",
                                          "DEKA_IPC_ENABLED=1",
                                          "DEKA_IPC_ENABLED=",
                                          "DEKA_IPC_DEBUG=1",
                                          "NODE_CHANNEL_FDX=1",
                                          "=odd",
                                          ""};
  const std::vector<std::string> others = {"PATH=/bin", "DEKA_IPC_DEBUG=1", "NODE_CHANNEL_FDX=1",
                                           "=odd", ""};
  EXPECT_EQ(EnvironmentWithoutChannel(stale), others);
  for (const Dialect dialect : {Dialect::kDeka, Dialect::kNode}) {
    std::vector<std::string> expected = others;
    for (const std::string& variable : ChannelEnvironment({}, dialect, 3)) {
      expected.push_back(variable);
    }
    EXPECT_EQ(ChannelEnvironment(stale, dialect, 3), expected);
  }
}

}  // namespace
}  // namespace deka::ipc
