#include "server/config.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "ipc/error.h"

namespace deka::server {
namespace {

std::string ErrorOf(const absl::StatusOr<Config>& config) {
  if (config.ok()) return "(none)";
  EXPECT_EQ(ipc::ReasonOf(config.status()), ipc::Reason::kConfigInvalid);
  return std::string(config.status().message().data(), config.status().message().size());
}

std::string ErrorOf(const std::string& text) { return ErrorOf(Config::Parse(text, "a.textproto")); }

TEST(Config, ReadsAFile) {
  const auto config = Config::Parse(R"(
    agent_id: "build-7"
    listen: "unix:/run/deka/a.sock"  # a comment
    listen: "unix:/run/deka/b.sock"
    children { display_name: "worker" program: "node" args: "worker.js" args: "-v" }
    children { program: "cat" timeout { seconds: 5 } labels { key: "a" value: "b" } }
    limits {
      child { message_bytes_max: 1000 queue_bytes_max: 100000 log_bytes_max: 200000 }
      logs_bytes_max: 300000 queues_bytes_max: 400000 children_max: 5 observers_max: 6
      log_events_max: 7 queue_messages_max: 8 ended_children_max: 9 connections_max: 10
      write_stalled_ms_max: 11
    }
  )",
                                    "a.textproto");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->proto().agent_id(), "build-7");
  ASSERT_EQ(config->proto().children_size(), 2);
  EXPECT_EQ(config->proto().children(0).args_size(), 2);
  EXPECT_EQ(config->proto().children(1).labels().at("a"), "b");
  const agent::Limits& limits = config->limits();
  EXPECT_EQ(limits.message_bytes_max, 1000u);
  EXPECT_EQ(limits.queue_bytes_max, 100000u);
  EXPECT_EQ(limits.log_bytes_max, 200000u);
  EXPECT_EQ(limits.logs_bytes_max, 300000u);
  EXPECT_EQ(limits.queues_bytes_max, 400000u);
  EXPECT_EQ(limits.children_max, 5u);
  EXPECT_EQ(limits.observers_max, 6u);
  EXPECT_EQ(limits.log_events_max, 7u);
  EXPECT_EQ(limits.queue_messages_max, 8u);
  EXPECT_EQ(limits.ended_children_max, 9u);
  EXPECT_EQ(config->connections_max(), 10u);
  EXPECT_EQ(config->write_stalled_ms_max().count(), 11);
}

TEST(Config, KeepsTheDefaultsThatAFileDoesNotChange) {
  const auto config = Config::Parse("limits { children_max: 3 }", "a.textproto");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->limits().children_max, 3u);
  EXPECT_EQ(config->limits().message_bytes_max, agent::Limits().message_bytes_max);
  EXPECT_EQ(config->connections_max(), Config().connections_max());
  EXPECT_EQ(config->write_stalled_ms_max(), Config().write_stalled_ms_max());
}

TEST(Config, NamesAFieldThatIsNotKnown) {
  EXPECT_EQ(ErrorOf("agent_id: \"a\"\n\n  lissen: \"unix:/a\"\n"),
            "a.textproto:3:3: lissen: Message type \"deka.bridge.v1.AgentConfig\" has no field "
            "named \"lissen\".");
}

TEST(Config, NamesTheFieldOfAValueThatDoesNotFit) {
  EXPECT_EQ(ErrorOf("limits {\n  child { log_bytes_max: 5\n queue_bytes_max: \"much\" }\n}"),
            "a.textproto:3:19: limits.child.queue_bytes_max: Expected integer, got: \"much\".");
  EXPECT_EQ(ErrorOf("children {\n program: \"a\"\n dialect: DIALECT_X\n}"),
            "a.textproto:3:11: children[0].dialect: Unknown enumeration value of \"DIALECT_X\" for "
            "field \"dialect\".");
  EXPECT_EQ(ErrorOf("limits { children_max: 99999999999 }"),
            "a.textproto:1:24: limits.children_max: Integer out of range (99999999999).");
}

TEST(Config, NumbersWhatIsRepeated) {
  const auto place = [](const std::string& text) {
    const std::string error = ErrorOf(text);
    return error.substr(0, error.find(": ", error.find(": ") + 2));
  };
  EXPECT_EQ(place("children { program: \"a\" }\nchildren {\n dialect: X }"),
            "a.textproto:3:11: children[1].dialect");
  EXPECT_EQ(place("children { program: \"a\" }\nchildren < args: \"b\" args: 5 >"),
            "a.textproto:2:28: children[1].args[1]");
  EXPECT_EQ(place("children [{ program: \"a\" }, { timeout { seconds: 1 }\n cwd: 5 }]"),
            "a.textproto:2:7: children[1].cwd");
  EXPECT_EQ(place("children { args: [\"b\", \"c\",\n 5] }"),
            "a.textproto:2:2: children[0].args[2]");
  EXPECT_EQ(place("children {\n env { key: \"a\" value: \"b\" }\n env { key: \"c\" value: 7 }\n}"),
            "a.textproto:3:24: children[0].env[1].value");
  EXPECT_EQ(place("children { env { key: \"a\" } },\nchildren { cwdd: \"/\" }"),
            "a.textproto:2:12: children[1].cwdd");
}

TEST(Config, NamesAFieldThatIsThereTwice) {
  EXPECT_EQ(
      ErrorOf("agent_id: \"a\"\nagent_id: \"b\"\n"),
      "a.textproto:2:1: agent_id: Non-repeated field \"agent_id\" is specified multiple times.");
}

TEST(Config, SaysWhereAnUnfinishedFileEnds) {
  const std::string error = ErrorOf("children {\n  program: \"a\"\n");
  EXPECT_TRUE(error.starts_with("a.textproto:3:1: children[0]")) << error;
  EXPECT_TRUE(ErrorOf("agent_id: \"a\nb\"").starts_with("a.textproto:1:13: agent_id: "))
      << ErrorOf("agent_id: \"a\nb\"");
}

TEST(Config, RefusesANegativeLimit) {
  EXPECT_EQ(ErrorOf("limits {\n  children_max: -1\n}"),
            "a.textproto:2:3: limits.children_max: It is -1. Give a positive number, or 0 for the "
            "default, 16384.");
}

TEST(Config, RefusesAnAddressThatIsNoUnixSocket) {
  const std::string error = ErrorOf("listen: \"unix:/a/b\"\nlisten: \"0.0.0.0:80\"\n");
  EXPECT_TRUE(error.starts_with("a.textproto:2:1: listen[1]: Can't listen on \"0.0.0.0:80\""))
      << error;
}

TEST(Config, RefusesTextThatIsNotUtf8) {
  EXPECT_EQ(ErrorOf("children { program: \"a\" }\nchildren {\n args: \"b\" args: \"\\xff\" }"),
            "a.textproto:3:12: children[1].args[1]: It is not UTF-8. Write text in UTF-8, and its "
            "bytes as they are.");
}

TEST(Config, SaysWhereAFieldStandsOrWouldStand) {
  const auto config =
      Config::Parse("children { program: \"a\" }\nchildren {\n  program: \"b\"\n}", "a.textproto");
  ASSERT_TRUE(config.ok());
  const auto where = [&](std::string_view field) {
    const absl::Status error = config->Error(field, "no");
    EXPECT_EQ(ipc::MetadataOf(error, "field"), std::string(field));
    return std::string(error.message().data(), error.message().size());
  };
  EXPECT_EQ(where("children[1].program"), "a.textproto:3:3: children[1].program: no");
  EXPECT_EQ(where("children[1].cwd"), "a.textproto:2:1: children[1].cwd: no");
  EXPECT_EQ(where("children[1]"), "a.textproto:2:1: children[1]: no");
  EXPECT_EQ(where("limits.children_max"), "a.textproto: limits.children_max: no");
  EXPECT_EQ(where("children[7].program"), "a.textproto: children[7].program: no");
  EXPECT_EQ(where("nonsense"), "a.textproto: nonsense: no");
}

TEST(Config, NamesAFieldOnceThatOthersNameOtherwise) {
  const auto config = Config::Parse("children { display_name: \"a b\" }", "a.textproto");
  ASSERT_TRUE(config.ok());
  const auto error = [&](std::string_view message) {
    const absl::Status status = config->Error(
        "children[0].display_name",
        ipc::MakeError(ipc::Reason::kInvalidArgument, message, {{"field", "display_name"}}));
    return std::string(status.message().data(), status.message().size());
  };
  EXPECT_EQ(error("`display_name` is no name."),
            "a.textproto:1:12: children[0].display_name: It is no name.");
  EXPECT_EQ(error("No such program."),
            "a.textproto:1:12: children[0].display_name: No such program.");
}

class ConfigFile : public ::testing::Test {
 protected:
  ~ConfigFile() override { std::filesystem::remove_all(directory_); }

  std::string Write(const std::string& text) {
    std::ofstream(path_, std::ios::binary) << text;
    return path_;
  }

  const std::string directory_ = [] {
    char path[] = "/tmp/deka-config-test-XXXXXX";
    return std::string(mkdtemp(path));
  }();
  const std::string path_ = directory_ + "/a.textproto";
};

TEST_F(ConfigFile, IsRead) {
  const auto config = Config::Read(Write("agent_id: \"x\""));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->proto().agent_id(), "x");
}

TEST_F(ConfigFile, IsNamedInErrors) {
  EXPECT_TRUE(ErrorOf(Config::Read(Write("x"))).starts_with(path_ + ":1:1: x: "));
  EXPECT_EQ(ErrorOf(Config::Read(directory_ + "/none")),
            directory_ +
                "/none: Can't read it: No such file or directory. Name another file with "
                "--config.");
  EXPECT_EQ(ErrorOf(Config::Read(directory_)),
            directory_ + ": Can't read it: Is a directory. Name another file with --config.");
}

TEST_F(ConfigFile, HasALimit) {
  EXPECT_TRUE(Config::Read(Write("#" + std::string(Config::kFileBytesMax - 1, 'x'))).ok());
  EXPECT_TRUE(ErrorOf(Config::Read(Write("#" + std::string(Config::kFileBytesMax, 'x'))))
                  .starts_with(path_ + ": It is longer than 16777216 bytes."));
}

TEST_F(ConfigFile, DoesNotWaitForAWriterOfAFifo) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  const auto config = Config::Read(path_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->proto().children_size(), 0);
}

}  // namespace
}  // namespace deka::server
