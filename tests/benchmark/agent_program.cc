#include "tests/benchmark/agent_program.h"

#include <fmt/format.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/status/status.h"

namespace deka::benchmark {

absl::StatusOr<std::unique_ptr<AgentProgram>> AgentProgram::Start(const std::string& config) {
  char directory[] = "/tmp/deka-benchmark-XXXXXX";
  if (mkdtemp(directory) == nullptr) {
    return absl::InternalError(fmt::format("no directory in /tmp: {}", std::strerror(errno)));
  }
  std::unique_ptr<AgentProgram> agent(new AgentProgram(directory));
  const std::string config_path = fmt::format("{}/agent.textproto", directory);
  std::ofstream(config_path) << config;
  absl::StatusOr<std::unique_ptr<Program>> program =
      Program::Start({.command = {Runfile("server/deka-agent"), "--listen", agent->target_,
                                  "--config", config_path, "--no-keeper"},
                      .channel = false,
                      .log_path = agent->log_path_});
  if (!program.ok()) return program.status();
  agent->program_ = *std::move(program);
  absl::StatusOr<Client> client = Client::Connect(
      {.target = agent->target_, .appear_ms_max = std::chrono::milliseconds(10'000)});
  if (!client.ok()) {
    std::ifstream log(agent->log_path_);
    return absl::UnavailableError(
        fmt::format("{}; it says: {}", std::string(client.status().message()),
                    std::string(std::istreambuf_iterator<char>(log), {})));
  }
  agent->client_ = std::make_unique<Client>(*std::move(client));
  return agent;
}

AgentProgram::~AgentProgram() {
  client_.reset();
  program_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

absl::StatusOr<int> AgentProgram::Stop() {
  if (absl::Status status = program_->Signal(SIGTERM); !status.ok()) return status;
  return program_->Wait();
}

absl::StatusOr<Child> AgentProgram::Fork(std::string_view runfile,
                                         std::vector<std::string> args) const {
  absl::StatusOr<v1::ChildSpec> spec = SpecOf(Runfile(runfile), std::move(args));
  if (!spec.ok()) return spec.status();
  spec->set_dialect(v1::DIALECT_NODE);
  return client_->Fork(*std::move(spec));
}

v1::ObserveRequest MessagesOf(const std::string& child) {
  v1::ObserveRequest request = MessagesOfAll();
  request.mutable_filter()->add_children(child);
  return request;
}

v1::ObserveRequest MessagesOfAll() {
  v1::ObserveRequest request;
  request.set_parent("agents/-");
  request.mutable_observation()->add_kinds(v1::EVENT_KIND_MESSAGE);
  request.mutable_observation()->set_direction(v1::DIRECTION_FROM_CHILD);
  // Nothing but what is measured happens in between.
  request.mutable_observation()->mutable_heartbeat_interval()->set_seconds(60);
  return request;
}

}  // namespace deka::benchmark
