#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include <chrono>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "sdk/dekactl/agent_text.h"
#include "sdk/dekactl/cursor_text.h"
#include "sdk/dekactl/event_json.h"
#include "sdk/dekactl/event_text.h"
#include "sdk/dekactl/words.h"

namespace deka::dekactl {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

v1::Cursor MakeCursor(const std::string& agent, int64_t epoch, int64_t sequence) {
  v1::Cursor cursor;
  cursor.set_agent(agent);
  cursor.set_epoch(epoch);
  cursor.set_sequence(sequence);
  return cursor;
}

v1::Event MakeMessage(const std::string& json) {
  v1::Event event;
  event.set_sequence(7);
  event.set_child_sequence(2);
  event.mutable_time()->set_seconds(3723);
  event.mutable_time()->set_nanos(45'000'000);
  event.set_child("k3jd");
  event.mutable_from_child()->set_dialect(v1::DIALECT_NODE);
  event.mutable_from_child()->set_size_bytes(static_cast<int64_t>(json.size()));
  event.set_json(json);
  return event;
}

v1::Child MakeChild(const std::string& id, const std::string& name) {
  v1::Child child;
  child.set_name("agents/a/children/" + id);
  child.set_display_name(name);
  return child;
}

// --- agents ---

constexpr int64_t kStart = 1'732'526'467;

v1::Agent MakeAgent() {
  v1::Agent agent;
  agent.set_name("agents/build-7");
  agent.set_version("0.1.0");
  agent.set_pid(4711);
  agent.set_keeper_pid(4700);
  agent.set_spare_pid(4712);
  agent.set_incarnation(3);
  agent.mutable_start_time()->set_seconds(kStart);
  agent.set_epoch(1'732'526'400'000'000);
  agent.set_head((int64_t{1} << 53) + 1);
  agent.set_observers(2);
  agent.set_children(5);
  agent.set_running_children(4);
  v1::AgentLimits& limits = *agent.mutable_limits();
  limits.mutable_child()->set_message_bytes_max(1 << 20);
  limits.mutable_child()->set_queue_bytes_max((4 << 20) + (4 << 10));
  limits.mutable_child()->set_log_bytes_max(1001);
  limits.set_logs_bytes_max(int64_t{8} << 30);
  limits.set_queues_bytes_max(256 << 20);
  limits.set_children_max(16384);
  limits.set_observers_max(1024);
  limits.set_log_events_max(1);
  limits.set_queue_messages_max(65536);
  limits.set_connections_max(1023);
  limits.set_write_stalled_ms_max(10'000);
  return agent;
}

std::chrono::system_clock::time_point AfterStart(milliseconds time) {
  return std::chrono::system_clock::time_point(seconds(kStart) + time);
}

TEST(AgentTextTest, ProgramsGetNumbersAndAlwaysTheSameMembers) {
  EXPECT_EQ(
      AgentJson(MakeAgent(), AfterStart(milliseconds(62'007))),
      R"({"agent":"build-7","version":"0.1.0","agentPid":4711,"keeperPid":4700,)"
      R"("sparePid":4712,"incarnation":3,"degraded":false,"uptime":62.007,"epoch":1732526400000000,)"
      R"("head":9007199254740993,"observers":2,"children":5,"limits":{"child":)"
      R"({"messageBytesMax":1048576,"queueBytesMax":4198400,"logBytesMax":1001},)"
      R"("logsBytesMax":8589934592,"queuesBytesMax":268435456,"childrenMax":16384,)"
      R"("observersMax":1024,"logEventsMax":1,"queueMessagesMax":65536,)"
      R"("endedChildrenMax":0,"connectionsMax":1023,"writeStalledMsMax":10000}})");
}

TEST(AgentTextTest, AProcessThatIsNotThereIsNull) {
  v1::Agent agent = MakeAgent();
  agent.clear_spare_pid();
  const std::string kept = AgentJson(agent, AfterStart(milliseconds(0)));
  EXPECT_NE(kept.find(R"("keeperPid":4700,"sparePid":null,)"), std::string::npos) << kept;
  agent.clear_keeper_pid();
  const std::string alone = AgentJson(agent, AfterStart(milliseconds(0)));
  EXPECT_NE(alone.find(R"("keeperPid":null,"sparePid":null,)"), std::string::npos) << alone;
}

TEST(AgentTextTest, AClockThatWasSetBackMakesNoTimeNegative) {
  const std::string json = AgentJson(MakeAgent(), AfterStart(milliseconds(-1500)));
  EXPECT_NE(json.find(R"("uptime":0.000,)"), std::string::npos) << json;
}

TEST(AgentTextTest, PeopleGetTwoColumns) {
  EXPECT_EQ(AgentLines(MakeAgent(), AfterStart(seconds(125)), /*colored=*/false),
            (std::vector<std::string>{
                "agent        build-7",
                "version      0.1.0",
                "pid          4711",
                "keeper       4700",
                "spare        4712",
                "incarnation  3",
                "uptime       2m 5s",
                "children     5, 4 running",
                "observers    2",
                "epoch        1732526400000000",
                "head         9007199254740993",
                "",
                "child.message_bytes_max  1 MiB",
                "child.queue_bytes_max    4100 KiB",
                "child.log_bytes_max      1001 bytes",
                "logs_bytes_max           8192 MiB",
                "queues_bytes_max         256 MiB",
                "children_max             16384",
                "observers_max            1024",
                "log_events_max           1",
                "queue_messages_max       65536",
                "ended_children_max       0",
                "connections_max          1023",
                "write_stalled_ms_max     10 s",
            }));
}

TEST(AgentTextTest, ColoursNamesAndWhatIsNotThere) {
  v1::Agent agent = MakeAgent();
  agent.clear_spare_pid();
  const auto lines = AgentLines(agent, AfterStart(seconds(0)), /*colored=*/true);
  EXPECT_EQ(lines[3], "\x1b[1mkeeper     \x1b[0m  4700");
  EXPECT_EQ(lines[4], "\x1b[1mspare      \x1b[0m  \x1b[2mnone\x1b[0m");
}

TEST(AgentTextTest, UptimeHasItsTwoLargestUnits) {
  const auto uptime = [](seconds time) {
    return AgentLines(MakeAgent(), AfterStart(time), /*colored=*/false)[6].substr(13);
  };
  EXPECT_EQ(uptime(seconds(-5)), "0s");
  EXPECT_EQ(uptime(seconds(59)), "59s");
  EXPECT_EQ(uptime(seconds(60)), "1m 0s");
  EXPECT_EQ(uptime(seconds(3'599)), "59m 59s");
  EXPECT_EQ(uptime(seconds(3'600)), "1h 0m");
  EXPECT_EQ(uptime(seconds(86'399)), "23h 59m");
  EXPECT_EQ(uptime(seconds(86'400)), "1d 0h");
  EXPECT_EQ(uptime(seconds(1'000'000)), "11d 13h");
}

TEST(AgentTextTest, NothingMovesTheCursor) {
  v1::Agent agent = MakeAgent();
  agent.set_name("agents/\x1b[2J");
  agent.set_version("\"\n");
  const auto lines = AgentLines(agent, AfterStart(seconds(0)), /*colored=*/false);
  EXPECT_EQ(lines[0], "agent        \\x1b[2J");
  EXPECT_EQ(lines[1], "version      \"\\n");
  const std::string json = AgentJson(agent, AfterStart(seconds(0)));
  EXPECT_TRUE(json.starts_with(R"({"agent":"\u001b[2J","version":"\"\n",)")) << json;
}

// --- cursors ---

TEST(CursorTextTest, WhatIsPrintedCanBePastedBack) {
  const v1::Cursor cursor = MakeCursor("build-7", 1732526467, 42);
  EXPECT_EQ(CursorText(cursor), "build-7/1732526467/42");
  const auto parsed = ParseCursor(CursorText(cursor));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->SerializeAsString(), cursor.SerializeAsString());
}

TEST(CursorTextTest, RefusesEverythingElse) {
  for (const char* text : {"", "/", "//", "42", "a/1", "/1/2", "a//2", "a/1/", "a/x/2", "a/1/-2",
                           "a/1/2x", "a/1/99999999999999999999", "a/ 1/2"}) {
    const auto parsed = ParseCursor(text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(parsed.status().message().find("AGENT/EPOCH/SEQUENCE"), std::string::npos) << text;
  }
}

// --- words ---

TEST(WordsTest, ParsesEveryKindThatItNames) {
  for (const std::string& word : KindWords()) {
    const auto kind = ParseKind(word);
    ASSERT_TRUE(kind.ok()) << kind.status();
    std::string name = "EVENT_KIND_";
    for (const char letter : word) {
      name += static_cast<char>(toupper(letter));
    }
    EXPECT_EQ(v1::EventKind_Name(*kind), name);
  }
  EXPECT_EQ(KindWords().size(), static_cast<size_t>(v1::EventKind_descriptor()->value_count() - 1))
      << "each kind has a word";
}

TEST(WordsTest, AnUnknownWordIsRefusedWithAllKnownOnes) {
  EXPECT_EQ(ParseDialect("bun").status().message(), "bun is no dialect; write one of deka, node");
  EXPECT_EQ(ParseDirection("up").status().message(), "up is no direction; write one of from, to");
  EXPECT_FALSE(ParseKind("").ok());
}

TEST(WordsTest, ParsesSignals) {
  EXPECT_EQ(ParseSignal("TERM").value(), SIGTERM);
  EXPECT_EQ(ParseSignal("SIGTERM").value(), SIGTERM);
  EXPECT_EQ(ParseSignal("sigusr1").value(), SIGUSR1);
  EXPECT_EQ(ParseSignal("9").value(), SIGKILL);
  for (const char* word : {"", "SIG", "0", "-1", "65", "999999999999", "TERMS", "9x"}) {
    EXPECT_EQ(ParseSignal(word).status().code(), absl::StatusCode::kInvalidArgument) << word;
  }
  for (const std::string& word : SignalWords()) {
    EXPECT_TRUE(ParseSignal(word).ok()) << word;
  }
}

TEST(WordsTest, ParsesWhereToBegin) {
  EXPECT_TRUE(ParseStart("latest")->latest());
  EXPECT_TRUE(ParseStart("earliest")->earliest());
  EXPECT_EQ(ParseStart("last:10")->last(), 10);
  EXPECT_EQ(ParseStart("after:a/1/2")->after().sequence(), 2);
  for (const char* word : {"", "first", "last", "last:", "last:0", "last:-1", "last:x",
                           "after:", "after:2", "LATEST"}) {
    EXPECT_EQ(ParseStart(word).status().code(), absl::StatusCode::kInvalidArgument) << word;
  }
}

TEST(WordsTest, ParsesCounts) {
  EXPECT_EQ(ParseCount("1").value(), 1);
  EXPECT_EQ(ParseCount("9223372036854775807").value(), INT64_MAX);
  for (const char* word : {"", "0", "-1", "x", "1x", "9223372036854775808"}) {
    EXPECT_EQ(ParseCount(word).status().code(), absl::StatusCode::kInvalidArgument) << word;
  }
}

TEST(WordsTest, ParsesDurations) {
  EXPECT_EQ(ParseDuration("200ms").value(), milliseconds(200));
  EXPECT_EQ(ParseDuration("1.5s").value(), milliseconds(1500));
  EXPECT_EQ(ParseDuration("2m").value(), seconds(120));
  EXPECT_EQ(ParseDuration("1h").value(), seconds(3600));
  EXPECT_EQ(ParseDuration("8760h").value(), std::chrono::hours(8760));
  for (const char* word : {"", "5", "s", "0s", "0.1ms", "-1s", "1.2.3s", "1d", "8761h", "1 s",
                           "infs", "nans", "0x5s", "1e3s", "."}) {
    EXPECT_EQ(ParseDuration(word).status().code(), absl::StatusCode::kInvalidArgument) << word;
  }
}

TEST(WordsTest, ParsesHowLongAChildMayBeHeldBack) {
  EXPECT_EQ(ParseHold("1ms").value(), milliseconds(1));
  EXPECT_EQ(ParseHold("8s").value(), seconds(8));
  EXPECT_EQ(ParseHold("8.001s").status().message(),
            "8.001s is too long to hold a child back; write at most 8s");
  EXPECT_FALSE(ParseHold("5").ok());
}

TEST(WordsTest, ParsesSince) {
  const auto now = std::chrono::system_clock::time_point(seconds(1'000'000));
  EXPECT_EQ(ParseSince("10m", now)->seconds(), 1'000'000 - 600);
  EXPECT_EQ(ParseSince("1500ms", now)->nanos(), 500'000'000);
  EXPECT_EQ(ParseSince("1970-01-01T00:01:00Z", now)->seconds(), 60);
  EXPECT_EQ(ParseSince("1970-01-01T02:01:00.25+02:00", now)->ShortDebugString(),
            "seconds: 60 nanos: 250000000");
  for (const char* word : {"", "10", "yesterday", "2026-07-05", "14:30", "2026-07-05 14:30:00",
                           "2026-07-05T14:30:00", "2026-13-05T14:30:00Z", "-10m"}) {
    const auto since = ParseSince(word, now);
    EXPECT_EQ(since.status().code(), absl::StatusCode::kInvalidArgument) << word;
    EXPECT_NE(since.status().message().find("write how long ago, as 10m"), std::string::npos);
  }
}

TEST(WordsTest, ParsesHowMuchOfAPayload) {
  using Bytes = std::optional<int64_t>;
  EXPECT_EQ(ParsePayload("full").value(), Bytes());
  EXPECT_EQ(ParsePayload("none").value(), Bytes(0));
  EXPECT_EQ(ParsePayload("1").value(), Bytes(1));
  EXPECT_EQ(ParsePayload("4k").value(), Bytes(4096));
  EXPECT_EQ(ParsePayload("64m").value(), Bytes(64 << 20));
  EXPECT_EQ(ParsePayload("67108864").value(), Bytes(64 << 20));
  for (const char* word : {"", "0", "-1", "k", "1.5k", "4kb", "4K", "65m", "67108865", "all",
                           "99999999999999999999", "9223372036854775807k"}) {
    EXPECT_EQ(ParsePayload(word).status().code(), absl::StatusCode::kInvalidArgument) << word;
  }
}

TEST(WordsTest, ParsesWhatToDoWithASlowObserver) {
  for (const std::string& word : SlowWords()) {
    EXPECT_TRUE(ParseSlow(word).ok()) << word;
  }
  EXPECT_EQ(ParseSlow("block").value(), v1::SLOW_POLICY_BLOCK);
  EXPECT_EQ(ParseSlow("wait").status().message(),
            "wait is no policy for a slow observer; write one of gap, disconnect, block");
}

TEST(WordsTest, ParsesConditions) {
  const auto where = [](std::string_view word) {
    const absl::StatusOr<v1::ContentFilter> parsed = ParseWhere(word);
    if (!parsed.ok()) {
      return std::string(parsed.status().message());
    }
    return parsed->has_equals() ? parsed->pointer() + " is " + parsed->equals()
                                : parsed->pointer() + " exists";
  };
  EXPECT_EQ(where("/id"), "/id exists");
  EXPECT_EQ(where("/id=7"), "/id is 7");
  EXPECT_EQ(where("/id="), R"(/id is "")");
  EXPECT_EQ(where("=7"), " is 7");
  EXPECT_EQ(where("/"), "/ exists");
  EXPECT_EQ(where("/a~1b/~0/0=true"), "/a~1b/~0/0 is true");
  EXPECT_EQ(where("/name=bob"), R"(/name is "bob")");
  EXPECT_EQ(where(R"(/name="7")"), R"(/name is "7")");
  EXPECT_EQ(where("/name=a=\"b\\\n"), R"(/name is "a=\"b\\\n")");
  EXPECT_EQ(where(R"(/x={"a": [1]})"), R"(/x is {"a": [1]})");
  EXPECT_EQ(where("/x=nan"), R"(/x is "nan")");
  EXPECT_EQ(where("/x=1e999"), "/x is 1e999");
  EXPECT_EQ(where("id=7"),
            "id=7: the pointer does not begin with /; write one before each key or index, or leave "
            "the pointer empty for the whole value; an example: /user/name=bob");
  EXPECT_NE(where("").find("a condition is missing"), std::string::npos);
  EXPECT_NE(where("/a~2").find("write ~0 for ~"), std::string::npos);
  EXPECT_NE(where("/\xff").find("not UTF-8"), std::string::npos);
  EXPECT_NE(where("/" + std::string(1023, 'x')).find("exists"), std::string::npos);
  EXPECT_NE(where("/" + std::string(1024, 'x')).find("the limit is 1024"), std::string::npos);
  EXPECT_NE(where("/x=\"" + std::string(65534, 'x') + "\"").find("/x is"), std::string::npos);
  const std::string too_long = where("/x=\"" + std::string(65535, 'x') + "\"");
  EXPECT_NE(too_long.find("the limit is 65536"), std::string::npos);
  EXPECT_LT(too_long.size(), 300u);
}

TEST(WordsTest, ParsesPairs) {
  EXPECT_EQ(*ParsePair("A=b=c"), std::pair(std::string("A"), std::string("b=c")));
  EXPECT_EQ(*ParsePair("A="), std::pair(std::string("A"), std::string()));
  EXPECT_EQ(ParsePair("A").status().message(), "A is no pair; write KEY=VALUE, as in color=blue");
  EXPECT_FALSE(ParsePair("=b").ok());
}

TEST(WordsTest, TellsHowAProcessEnded) {
  v1::ExitStatus status;
  status.set_code(3);
  EXPECT_EQ(ExitWords(status), "exited with code 3");
  status.set_signal(SIGKILL);
  EXPECT_EQ(ExitWords(status), "ended by SIGKILL");
  status.set_unknown_reason("not our child");
  status.set_still_held(true);
  EXPECT_EQ(ExitWords(status),
            "ended, nobody knows how: not our child; another process still holds its channel or "
            "output");
}

// --- JSON ---

TEST(EventJsonTest, AMessageIsAValueNotAString) {
  EXPECT_EQ(EventJson(MakeMessage(R"({"a":[1,"x"]})")),
            R"({"sequence":"7","childSequence":"2","time":"1970-01-01T01:02:03.045Z",)"
            R"("child":"k3jd","fromChild":{"dialect":"DIALECT_NODE","sizeBytes":"13"},)"
            R"("message":{"a":[1,"x"]}})");
}

TEST(EventJsonTest, TheMessageIsNotTouched) {
  for (const char* json : {"1e999", "123456789012345678901234567890", R"("\ud800")", "null", "-0",
                           R"({"a":1,"a":2})", "\"é\""}) {
    const std::string line = EventJson(MakeMessage(json));
    EXPECT_TRUE(line.ends_with(std::string(",\"message\":") + json + "}")) << line;
  }
}

TEST(EventJsonTest, IsOneLine) {
  const std::string line = EventJson(MakeMessage("[1,\r\n 2]"));
  EXPECT_TRUE(line.ends_with("\"message\":[1,   2]}")) << line;
}

TEST(EventJsonTest, DepthIsNoReasonToQuote) {
  const std::string deep = std::string(10'000, '[') + std::string(10'000, ']');
  EXPECT_TRUE(EventJson(MakeMessage(deep)).ends_with(deep + "}"));
}

// The line of `event`, from its payload on.
std::string PayloadJson(const v1::Event& event) {
  const std::string line = EventJson(event);
  return line.substr(line.rfind("},") + 2);
}

TEST(EventJsonTest, WhatIsCutIsNoMessage) {
  // A part of a message may be JSON, too.
  for (const char* json : {R"({"a":"\u0001é)", "12", ""}) {
    v1::Event event = MakeMessage(json);
    event.mutable_from_child()->set_size_bytes(100);
    v1::Event text;
    text.set_text(json);
    std::string expected = ToJson(text);
    expected.pop_back();
    EXPECT_EQ(PayloadJson(event), "\"payloadCut\":" + expected + R"(,"sizeBytes":"100"}})");
  }
  v1::Event event = MakeMessage("");
  event.clear_payload();
  event.mutable_from_child()->set_size_bytes(100);
  EXPECT_EQ(PayloadJson(event), R"("payloadCut":{"text":"","sizeBytes":"100"}})");
}

TEST(EventJsonTest, WhatIsNoJsonIsNoMessage) {
  EXPECT_EQ(PayloadJson(MakeMessage(R"({"a":)")),
            R"("payloadCut":{"text":"{\"a\":","sizeBytes":"5"}})");
}

TEST(EventJsonTest, ACutLineOfOutputIsNoText) {
  v1::Event event;
  event.mutable_output()->set_size_bytes(9);
  event.set_text("12345678");
  EXPECT_EQ(PayloadJson(event), R"("payloadCut":{"text":"12345678","sizeBytes":"9"}})");
  event.set_raw("\xff");
  EXPECT_EQ(PayloadJson(event), R"("payloadCut":{"raw":"/w==","sizeBytes":"9"}})");
  event.set_text("123456789");
  EXPECT_EQ(PayloadJson(event), R"("text":"123456789"})");
}

TEST(EventJsonTest, ABadFrameHasItsFirstBytes) {
  v1::Event event;
  event.mutable_error()->set_size_bytes(9);
  event.set_raw("{x");
  EXPECT_EQ(PayloadJson(event), R"("raw":"e3g="})");
}

TEST(EventJsonTest, OtherEventsAreInProtobufsMapping) {
  v1::Event event;
  event.set_sequence(1);
  event.mutable_output()->set_stream(v1::Output::STREAM_STDERR);
  event.set_text("a \"word\"");
  EXPECT_EQ(EventJson(event),
            R"({"sequence":"1","output":{"stream":"STREAM_STDERR"},"text":"a \"word\""})");
}

TEST(EventJsonTest, AGapHasTheCursorBehindIt) {
  v1::Gap gap;
  gap.set_child("k3jd");
  gap.set_from_child_sequence(2);
  gap.set_to_child_sequence(5);
  gap.set_to_sequence(9);
  gap.set_reason(v1::Gap::REASON_LOG_TURNED_OVER);
  EXPECT_EQ(GapJson(gap, MakeCursor("a", 1, 9)),
            R"({"gap":{"child":"k3jd","fromChildSequence":"2","toChildSequence":"5",)"
            R"("toSequence":"9","reason":"REASON_LOG_TURNED_OVER"},"cursor":"a/1/9"})");
}

// --- text ---

class EventTextTest : public testing::Test {
 protected:
  void SetUp() override {
    setenv("TZ", "UTC", 1);
    tzset();
  }
};

TEST_F(EventTextTest, AMessageIsOneLine) {
  EventText text(false);
  text.Learn(MakeChild("k3jd", "worker"));
  EXPECT_EQ(text.Line(MakeMessage("{\"a\":\n1}")), "01:02:03.045 worker  from          {\"a\": 1}");
}

TEST_F(EventTextTest, AChildWithoutANameIsCalledByItsId) {
  EventText text(false);
  EXPECT_EQ(text.Line(MakeMessage("1")), "01:02:03.045 k3jd  from          1");
}

TEST_F(EventTextTest, TwoChildrenOfOneNameAreToldApart) {
  EventText text(false);
  text.Learn(MakeChild("k3jd", "worker"));
  text.Learn(MakeChild("other", "worker"));
  EXPECT_EQ(text.Line(MakeMessage("1")), "01:02:03.045 worker/k3jd  from          1");
}

TEST_F(EventTextTest, NothingOfAChildMovesTheCursorOfATerminal) {
  EventText text(false);
  v1::Event event = MakeMessage("1");
  event.mutable_output()->set_stream(v1::Output::STREAM_STDOUT);
  event.set_raw("\x1b[2J\xff");
  EXPECT_EQ(text.Line(event), "01:02:03.045 k3jd  stdout        \\x1b[2J\\xff");
}

TEST_F(EventTextTest, SaysHowMuchOfAMessageIsMissing) {
  EventText text(false);
  v1::Event event = MakeMessage("[1,2");
  event.mutable_from_child()->set_size_bytes(100);
  EXPECT_EQ(text.Line(event), "01:02:03.045 k3jd  from          [1,2... (96 bytes more)");
}

TEST_F(EventTextTest, SaysHowLongAMessageIsOfWhichNothingIsShown) {
  EventText text(false);
  v1::Event event = MakeMessage("");
  event.mutable_from_child()->set_size_bytes(100);
  EXPECT_EQ(text.Line(event), "01:02:03.045 k3jd  from          (100 bytes)");
}

TEST_F(EventTextTest, EveryReasonOfAGapHasItsWords) {
  EventText text(false);
  std::set<std::string> said;
  const auto& reasons = *v1::Gap::Reason_descriptor();
  for (int i = 0; i < reasons.value_count(); ++i) {
    v1::Gap gap;
    gap.set_from_child_sequence(2);
    gap.set_to_child_sequence(2);
    gap.set_reason(static_cast<v1::Gap::Reason>(reasons.value(i)->number()));
    said.insert(text.Line(gap, MakeCursor("a", 1, 9), {}));
  }
  EXPECT_EQ(said.size(), static_cast<size_t>(reasons.value_count()));
}

TEST_F(EventTextTest, AGapSaysWhatWhyAndWhereToGoOn) {
  EventText text(false);
  v1::Gap gap;
  gap.set_child("k3jd");
  gap.set_from_child_sequence(2);
  gap.set_to_child_sequence(5);
  gap.set_reason(v1::Gap::REASON_LOG_TURNED_OVER);
  google::protobuf::Timestamp now;
  now.set_seconds(3723);
  now.set_nanos(45'000'000);
  EXPECT_EQ(text.Line(gap, MakeCursor("a", 1, 9), now),
            "01:02:03.045 k3jd  missed        4 events, 2 to 5: the log has turned over; "
            "--from after:a/1/9 goes on behind them");
  gap.Clear();
  gap.set_inexact(true);
  gap.set_reason(v1::Gap::REASON_OTHER_EPOCH);
  EXPECT_EQ(text.Line(gap, MakeCursor("a", 2, 0), now),
            "01:02:03.045 -     missed        an unknown number of events: the agent was started "
            "anew, and what its log held before is gone; --from after:a/2/0 goes on behind them");
}

TEST_F(EventTextTest, EveryKindHasItsWord) {
  EventText text(false);
  const auto line = [&text](auto set) {
    v1::Event event;
    event.set_child("c");
    set(event);
    return text.Line(event).substr(std::string("00:00:00.000 c  ").size());
  };
  v1::Sender sender;
  sender.set_principal("uid:0");
  sender.set_client("dekactl/1");
  EXPECT_EQ(line([](v1::Event& event) {
              event.mutable_to_child();
              event.set_json("1");
            }),
            "to            1");
  EXPECT_EQ(line([](v1::Event& event) {
              v1::Child& child = *event.mutable_started()->mutable_child();
              child.set_name("agents/a/children/c");
              child.set_pid(5);
              child.set_program("node");
              child.add_args("w.js");
            }),
            "started       pid 5: node w.js");
  EXPECT_EQ(line([](v1::Event& event) {
              event.mutable_error()->set_message("No JSON.");
              event.set_raw("{x");
            }),
            "error         {x: No JSON.");
  EXPECT_EQ(line([](v1::Event& event) { event.mutable_error()->set_message("Of no frame."); }),
            "error         Of no frame.");
  EXPECT_EQ(line([](v1::Event& event) {
              event.mutable_undelivered()->set_frame_bytes(9);
              event.mutable_undelivered()->set_message("The channel closed.");
            }),
            "undelivered   0 of 9 bytes were written. The channel closed.");
  EXPECT_EQ(line([&sender](v1::Event& event) {
              event.mutable_signalled()->set_signal(SIGTERM);
              *event.mutable_signalled()->mutable_sender() = sender;
            }),
            "signalled     SIGTERM by dekactl/1 (uid:0)");
  EXPECT_EQ(line([](v1::Event& event) {
              event.mutable_disconnected()->set_by(v1::Disconnected::BY_CHILD);
            }),
            "disconnected  by the child");
  EXPECT_EQ(line([](v1::Event& event) { event.mutable_exited()->mutable_status()->set_code(0); }),
            "exited        exited with code 0");
  EXPECT_EQ(line([](v1::Event& event) { event.mutable_closed(); }), "closed");
}

TEST_F(EventTextTest, ColorsSurroundWordsAndNotTheMessage) {
  EventText text(true);
  const std::string line = text.Line(MakeMessage("1"));
  EXPECT_NE(line.find("\x1b[32mfrom"), std::string::npos);
  EXPECT_TRUE(line.ends_with("\x1b[0m  1")) << line;
}

}  // namespace
}  // namespace deka::dekactl
