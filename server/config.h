// The configuration file of deka-agent: a textproto of deka.bridge.v1.AgentConfig.
//
//   bytes -> text format -> checked: numbers, addresses -> Config
//                       \-> errors that name file, line, column and field:
//
//   agent.textproto:7:12: children[1].timeout: ...
//
// Thread: one at a time.
#ifndef SERVER_CONFIG_H_
#define SERVER_CONFIG_H_

#include <google/protobuf/text_format.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/agent.h"
#include "deka/bridge/v1/agent_config.pb.h"

namespace deka::server {

class Config {
 public:
  // A file longer than this is none of ours.
  static constexpr size_t kFileBytesMax = 16 << 20;

  // What an agent without a file has.
  Config() = default;

  // kConfigInvalid if the file can't be read, or what it says can't be.
  static absl::StatusOr<Config> Read(const std::string& path);

  // The same of a text; `file` is what errors call it.
  static absl::StatusOr<Config> Parse(const std::string& text, const std::string& file);

  const bridge::v1::AgentConfig& proto() const { return proto_; }

  // Defaults, where the file says nothing. That they fit each other is for agent::Agent to say.
  const agent::Limits& limits() const { return limits_; }
  size_t connections_max() const { return connections_max_; }
  std::chrono::milliseconds write_stalled_ms_max() const {
    return std::chrono::milliseconds(write_stalled_ms_max_);
  }

  // kConfigInvalid, which says where `field` (as `children[1].timeout`) stands: itself, or what it
  // would stand in.
  absl::Status Error(std::string_view field, std::string_view what) const;

  // The same of what somebody else says of the field, perhaps under another name: it is named once.
  absl::Status Error(std::string_view field, const absl::Status& status) const;

 private:
  absl::Status Check();

  std::string file_;
  bridge::v1::AgentConfig proto_;
  std::shared_ptr<google::protobuf::TextFormat::ParseInfoTree> places_ =
      std::make_shared<google::protobuf::TextFormat::ParseInfoTree>();
  agent::Limits limits_;
  size_t connections_max_ = 1024;
  size_t write_stalled_ms_max_ = 10'000;
};

}  // namespace deka::server

#endif  // SERVER_CONFIG_H_
