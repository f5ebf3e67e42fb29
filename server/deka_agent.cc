// deka-agent: forks children, serves them on Unix sockets, and ends them in order.
//
//   command line -> configuration --> turns into the keeper (keeper/), which starts it again, or
//   main thread: [spare: waits for its turn] -> sockets -> children -> the loop, until a signal
//   stopping:    health NOT_SERVING -> agent::Agent::Stop -> server::Server::Stop -> exit
//
// docs/deka-agent.md is its manual.

#include <fcntl.h>
#include <fmt/format.h>
#include <limits.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/agent.h"
#include "agent/answer.h"
#include "ipc/descriptor.h"
#include "ipc/error.h"
#include "ipc/event_loop.h"
#include "ipc/log.h"
#include "ipc/standard_descriptors.h"
#include "ipc/version.h"
#include "keeper/protocol.h"
#include "server/config.h"
#include "server/descriptors.h"
#include "server/keeper_link.h"
#include "server/listener.h"
#include "server/server.h"
#include "server/upgrade.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

// The keeper's program: see keeper_program in BUILD.
extern "C" const char deka_keeper_program_begin[];
extern "C" const char deka_keeper_program_end[];

namespace deka::server {
namespace {

namespace v1 = ::deka::bridge::v1;

// What the manual says they mean.
enum ExitCode { kStopped = 0, kFailed = 1, kUsage = 2 };

// For calls under way when everything else has ended: observers read their last events and `fin`.
constexpr std::chrono::milliseconds kCallsEndMsMax{2000};

// An error may quote anything: a file, a command line.
constexpr size_t kErrorBytesMax = 8 << 10;

void LogError(std::string_view text) { spdlog::error("{}", ipc::Escaped(text, kErrorBytesMax)); }

void LogError(const absl::Status& status) {
  LogError({status.message().data(), status.message().size()});
}

// To standard error: standard output says nothing, so that a caller may wait for its end.
void LogToStandardError() {
  auto log = spdlog::stderr_color_mt("deka-agent");
  log->set_pattern(ipc::kLogPattern);
  spdlog::set_default_logger(std::move(log));
  const char* verbose = getenv("DEKA_VERBOSE");
  if (verbose != nullptr && std::string_view(verbose) == "1") {
    spdlog::set_level(spdlog::level::debug);
  }
}

// The signals that stop the agent. SIGHUP stays ignored where it is, as under nohup.
sigset_t StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  struct sigaction hangup = {};
  if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN) {
    sigaddset(&signals, SIGHUP);
  }
  return signals;
}

// Becomes the keeper, which runs this program again with the same arguments. Returns only if that
// fails.
absl::Status TurnIntoKeeper(char** argv) {
  const auto failed = [](std::string_view what) {
    return ipc::MakeError(
        ipc::Reason::kInternal,
        fmt::format("Can't {}: {}. --no-keeper runs without a keeper.", what, strerror(errno)));
  };
  char self[PATH_MAX] = {};
  if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0) {
    return failed("tell where this program is");
  }
  const int file = memfd_create("deka-keeper", MFD_CLOEXEC);
  const auto size = static_cast<ssize_t>(deka_keeper_program_end - deka_keeper_program_begin);
  if (file < 0 || write(file, deka_keeper_program_begin, static_cast<size_t>(size)) != size) {
    return failed("make the keeper's program");
  }
  char name[] = "deka-keeper";
  std::vector<char*> arguments = {name, self};
  for (char** argument = argv + 1; *argument != nullptr; ++argument) {
    arguments.push_back(*argument);
  }
  arguments.push_back(nullptr);
  fexecve(file, arguments.data(), environ);
  return failed("start the keeper");
}

absl::Status UpgradeRefused(std::string_view what, std::string_view message) {
  return ipc::MakeError(ipc::Reason::kUpgradeRefused, message, {{"what", std::string(what)}});
}

absl::Status KeeperGoneError() {
  return ipc::MakeError(ipc::Reason::kKeeperGone,
                        fmt::format("The keeper of agent process {} has ended, and only it could "
                                    "have put another agent in its place. When the children have "
                                    "ended, stop the agent (kill {}) and start the new program.",
                                    getpid(), getpid()));
}

absl::Status ToStatus(keeper::Refusal why, const std::string& program) {
  const auto refused = [&program](std::string_view what, std::string_view text) {
    return UpgradeRefused(what, fmt::format("The agent goes on as it is: {} {}", program, text));
  };
  constexpr std::string_view kAnew =
      "To use it, stop the agent and start it anew, which ends the children.";
  switch (why) {
    case keeper::Refusal::kEnded:
      return refused("ended",
                     "ended before it was ready. The log of the agent has what it said; see "
                     "whether it is a deka-agent that runs on this host.");
    case keeper::Refusal::kSilent:
      return refused("silent",
                     "was not ready in time. See whether it is a deka-agent, and whether this "
                     "host is too busy to start one.");
    case keeper::Refusal::kProtocol:
      return refused("protocol",
                     fmt::format("speaks another protocol than the keeper that runs. {}", kAnew));
    case keeper::Refusal::kLayout:
      return refused("layout",
                     fmt::format("lays out memory in another way than this agent, so it cannot go "
                                 "on from it. {}",
                                 kAnew));
    case keeper::Refusal::kNone:
    case keeper::Refusal::kNotStarted:
      break;
  }
  return refused("not_started",
                 "cannot be executed. See whether it is there and a program of this system, and "
                 "may be executed by the agent's user (chmod +x).");
}

// As the keeper takes it.
absl::StatusOr<ipc::Descriptor> OpenProgram(const std::string& path) {
  const auto malformed = [&path](std::string_view why) {
    return ipc::MakeError(
        ipc::Reason::kInvalidArgument,
        fmt::format("binary '{}' {}. Give the absolute path of a program on the agent's host.",
                    ipc::Escaped(path, PATH_MAX), why),
        {{"field", "binary"}});
  };
  if (!path.starts_with('/')) return malformed("is no absolute path");
  if (path.find('\0') != std::string::npos) return malformed("has a NUL in it");
  ipc::Descriptor program(open(path.c_str(), O_PATH | O_CLOEXEC));
  struct stat found = {};
  if (!program.valid() || fstat(program.get(), &found) != 0) {
    return malformed(fmt::format("cannot be opened: {}", strerror(errno)));
  }
  if (!S_ISREG(found.st_mode)) return malformed("is no file");
  return program;
}

// An agent's life, from its sockets to its end.
class AgentProcess {
 public:
  // `link` may be null: there is no keeper.
  AgentProcess(Config config, std::vector<std::string> listen, const sigset_t& stop_signals,
               const DescriptorLimit& descriptors, std::unique_ptr<KeeperLink> link)
      : config_(std::move(config)),
        listen_(std::move(listen)),
        stop_signals_(stop_signals),
        descriptors_(descriptors),
        link_(std::move(link)) {
    if (listen_.empty()) {
      listen_.assign(config_.proto().listen().begin(), config_.proto().listen().end());
    }
  }

  ExitCode Run() {
    if (absl::Status status = Open(); !status.ok()) {
      LogError(status);
      return kFailed;
    }
    signals_ = signalfd(-1, &stop_signals_, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals_ < 0) {
      LogError(fmt::format("Can't wait for signals: {}.", strerror(errno)));
      return kFailed;
    }
    {
      ipc::Watch watch(loop_, signals_, [this](int) { TakeSignals(); });
      watch.Want(ipc::Watch::kReadable);
      loop_.Hold();
      loop_.Post([this] { ForkNext(); });
      loop_.Run();
      loop_.Release();
    }
    close(signals_);
    if (ending_.joinable()) ending_.join();
    return exit_code_;
  }

 private:
  using Upgraded = agent::Done<v1::UpgradeAgentResponse>;
  using UpgradeAnswer = agent::Answer<v1::UpgradeAgentResponse>;

  absl::Status Open() {
    agent::Limits limits = config_.limits();
    size_t connections_max = config_.connections_max();
    const std::string lowered = FitToDescriptors(descriptors_.now, limits, connections_max);
    // Defaults that do not fit are no news to anybody who did not ask for them.
    const v1::AgentLimits& asked = config_.proto().limits();
    const bool asked_for_more = static_cast<size_t>(asked.children_max()) > limits.children_max ||
                                static_cast<size_t>(asked.connections_max()) > connections_max;
    agent::Agent::Options options;
    options.id = config_.proto().agent_id();
    options.limits = limits;
    options.descriptors_soft_max = descriptors_.before;
    std::vector<Listener::Held> held;
    if (link_ != nullptr) {
      options.keeper = link_.get();
      options.memory = &link_->memory();
      lineage_ = {.keeper_pid = link_->keeper_pid(), .incarnation = link_->incarnation()};
      options.lineage = lineage_;
      link_->Begin(loop_, {.on_stop = [this](int number) { TakeStop(number); },
                           .on_spare = [this](pid_t spare) { OnSpare(spare); },
                           .on_refused = [this](uint32_t why) { OnRefused(why); },
                           .on_gone = [this] { OnKeeperGone(); }});
      for (uint32_t slot = 0; slot < keeper::kSlotsMax; ++slot) {
        std::vector<ipc::Descriptor> kept = link_->TakeKept(slot);
        if (kept.size() == 2) {
          held.push_back({.lock = std::move(kept[0]), .socket = std::move(kept[1])});
        }
      }
    }
    absl::StatusOr<std::unique_ptr<agent::Agent>> agent =
        agent::Agent::Create(loop_, std::move(options));
    if (!agent.ok()) return InConfig(agent.status());
    agent_ = *std::move(agent);
    if (link_ != nullptr) {
      for (const absl::Status& lost : agent_->Recover(link_->TakeChildren())) LogError(lost);
    }
    Upgrade upgrade;
    if (link_ != nullptr) {
      upgrade = [this](const v1::UpgradeAgentRequest& request, Upgraded done) {
        StartUpgrade(request.binary(), UpgradeAnswer(std::move(done)));
      };
    }
    absl::StatusOr<std::unique_ptr<Server>> server =
        Server::Open(*agent_, {.listen = listen_,
                               .held = std::move(held),
                               .pid = link_ != nullptr ? link_->keeper_pid() : getpid(),
                               .connections_max = connections_max,
                               .write_stalled_ms_max = config_.write_stalled_ms_max(),
                               .upgrade = std::move(upgrade)});
    if (!server.ok()) return server.status();
    server_ = *std::move(server);
    if (link_ != nullptr) {
      uint32_t slot = 0;
      for (const auto& [lock, socket] : server_->descriptors()) {
        link_->KeepForSuccessors(slot++, {lock, socket});
      }
    }
    if (!lowered.empty()) {
      spdlog::log(asked_for_more ? spdlog::level::warn : spdlog::level::info, "{}", lowered);
    }
    return absl::OkStatus();
  }

  // An error of what the agent was made with, as one of the configuration.
  absl::Status InConfig(const absl::Status& status) const {
    const std::optional<std::string> field = ipc::MetadataOf(status, "field");
    if (!field) return status;
    if (*field == "id") return config_.Error("agent_id", status);
    for (const std::string_view of_child :
         {"message_bytes_max", "queue_bytes_max", "log_bytes_max"}) {
      if (*field == of_child) return config_.Error("limits.child." + *field, status);
    }
    return config_.Error("limits." + *field, status);
  }

  // The configuration's children, one after the other; then clients are answered.
  void ForkNext() {
    if (stopping_) return;
    if (forked_ == config_.proto().children_size() ||
        (link_ != nullptr && link_->memory().configured != 0)) {
      server_->Serve();
      if (link_ != nullptr) {
        link_->memory().configured = 1;
        link_->Ready();
      }
      for (const std::string& path : server_->paths()) {
        spdlog::info("Agent {} serves unix:{} (version {}).", agent_->id(),
                     ipc::Escaped(path, path.size()), ipc::kVersion);
      }
      return;
    }
    v1::ForkChildRequest request;
    request.set_parent("agents/-");
    *request.mutable_spec() = config_.proto().children(forked_);
    // Forked once, though an agent should be replaced in the middle.
    if (link_ != nullptr) request.set_request_id(fmt::format("configuration/{}", forked_));
    agent_->ForkChild(std::move(request), {.principal = "agent", .client = ""},
                      [this](absl::StatusOr<v1::ForkChildResponse> response) {
                        loop_.Post([this, status = response.status()] { Forked(status); });
                      });
  }

  void Forked(const absl::Status& status) {
    const int child = std::exchange(forked_, forked_ + 1);
    if (status.ok()) {
      ForkNext();
    } else if (!stopping_) {
      std::string field = ipc::MetadataOf(status, "field").value_or("spec.program");
      if (constexpr std::string_view kSpec = "spec."; field.starts_with(kSpec)) {
        field.erase(0, kSpec.size());
      }
      LogError(config_.Error(fmt::format("children[{}].{}", child, field), status));
      exit_code_ = kFailed;
      Stop();
    }
  }

  // The first one stops the agent in order, the second one at once.
  void TakeStop(int number) {
    const char* const abbreviation = sigabbrev_np(number);
    const std::string name = fmt::format("SIG{}", abbreviation == nullptr ? "?" : abbreviation);
    if (!stopping_) {
      spdlog::info("{}: stopping. Once more ends the children at once.", name);
      Stop();
    } else if (!hurried_) {
      spdlog::info("{}: ending the children at once.", name);
      Hurry();
    }
  }

  void OnSpare(pid_t spare) {
    lineage_.spare_pid = spare;
    agent_->SetLineage(lineage_);
  }

  // Until it is refused, or this process is killed to make room.
  void StartUpgrade(const std::string& binary, UpgradeAnswer answer) {
    if (stopping_) return;  // says the answer
    if (link_->gone()) return answer(KeeperGoneError());
    ipc::Descriptor program;
    if (!binary.empty()) {
      absl::StatusOr<ipc::Descriptor> opened = OpenProgram(binary);
      if (!opened.ok()) return answer(opened.status());
      program = *std::move(opened);
    }
    upgrade_answer_(UpgradeRefused(
        "superseded", "Another upgrade was asked for before this one was done, and counts."));
    upgrade_answer_ = std::move(answer);
    upgrade_program_ = binary.empty() ? "the program that this agent was started from" : binary;
    spdlog::info("An upgrade to {} is asked for.",
                 ipc::Escaped(upgrade_program_, upgrade_program_.size()));
    link_->Upgrade(program.get());
  }

  void OnRefused(uint32_t why) {
    upgrade_answer_(ToStatus(static_cast<keeper::Refusal>(why), upgrade_program_));
  }

  void OnKeeperGone() {
    upgrade_answer_(KeeperGoneError());
    spdlog::error(
        "The keeper has ended. The children go on, but nothing can be forked, and they will not "
        "survive this agent. Start a new one when they have ended.");
    lineage_.keeper_pid = 0;
    lineage_.spare_pid = 0;
    lineage_.degraded = true;
    agent_->SetLineage(lineage_);
    server_->SetPid(getpid());
  }

  void TakeSignals() {
    signalfd_siginfo signal = {};
    while (read(signals_, &signal, sizeof(signal)) == sizeof(signal)) {
      // Signals that end everything go to the keeper; who means this process replaces it.
      if (link_ != nullptr && !link_->gone()) {
        const auto number = static_cast<int>(signal.ssi_signo);
        ::signal(number, SIG_DFL);
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, number);
        raise(number);
        pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
      }
      TakeStop(static_cast<int>(signal.ssi_signo));
    }
  }

  void Stop() {
    stopping_ = true;
    upgrade_answer_(agent::StoppingError());
    server_->AnnounceStop();
    agent_->Stop({}, [this] { End(); });
  }

  void Hurry() {
    hurried_ = true;
    using std::chrono::milliseconds;
    agent_->Stop({.disconnect_ms_max = milliseconds(0), .terminate_ms_max = milliseconds(0)},
                 [] {});
  }

  // The agent has stopped. Calls under way may still ask it something, so the loop goes on
  // meanwhile.
  void End() {
    ending_ = std::thread([this] {
      server_->Stop(kCallsEndMsMax);
      loop_.Stop();
    });
  }

  const Config config_;
  std::vector<std::string> listen_;
  const sigset_t stop_signals_;
  const DescriptorLimit descriptors_;

  ipc::EventLoop loop_;
  const std::unique_ptr<KeeperLink> link_;
  agent::Lineage lineage_;
  UpgradeAnswer upgrade_answer_;  // of who waits for one
  std::string upgrade_program_;
  std::unique_ptr<agent::Agent> agent_;
  std::unique_ptr<Server> server_;
  int signals_ = -1;
  int forked_ = 0;  // of the configuration's children
  bool stopping_ = false;
  bool hurried_ = false;
  std::thread ending_;
  ExitCode exit_code_ = kStopped;
};

int Main(int argc, char** argv) {
  ipc::HoldStandardDescriptors();
  CLI::App app(
      "Forks children, records what they say, and lets others on this host send to, observe and "
      "disconnect them.",
      "deka-agent");
  std::vector<std::string> listen;
  std::string config_path;
  app.add_option("--listen", listen,
                 "Serve this Unix socket; may be given several times. Its directory is one that "
                 "only you can open, and is made if it is missing. Default: those of the "
                 "configuration, else $XDG_RUNTIME_DIR/deka/agent.sock, /run/deka/agent.sock for "
                 "root, /tmp/deka-UID/agent.sock.")
      ->type_name("unix:PATH")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--config", config_path,
                 "A textproto of deka.bridge.v1.AgentConfig: children to start, sockets, limits.")
      ->type_name("FILE");
  bool no_keeper = false;
  app.add_flag("--no-keeper", no_keeper,
               "Run without a keeper: the children's channels end with this process. Default: what "
               "the configuration says in `survive`, else with one.");
  app.set_version_flag("--version", fmt::format("deka-agent {}", ipc::kVersion),
                       "Say which version this is.");
  app.set_help_flag("-h,--help", "Say this.");
  app.footer(
      "SIGTERM, SIGINT and SIGHUP end the children in order, then the agent, with exit code 0; a "
      "second one ends the children at once.\n"
      "DEKA_VERBOSE=1 says more, DEKA_IPC_DEBUG=1 shows each frame.\n\n"
      "  deka-agent --listen unix:$HOME/.deka/agent.sock --config agent.textproto");
  LogToStandardError();
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {
    return app.exit(asked);
  } catch (const CLI::ParseError& error) {
    LogError(fmt::format("{}. deka-agent --help lists the options.", error.what()));
    return kUsage;
  }
  for (const std::string& address : listen) {
    if (const auto path = SocketPath(address); !path.ok()) {
      LogError(path.status());
      return kUsage;
    }
  }
  Config config;
  if (!config_path.empty()) {
    absl::StatusOr<Config> read = Config::Read(config_path);
    if (!read.ok()) {
      LogError(read.status());
      return kFailed;
    }
    config = *std::move(read);
  }

  const int keeper_socket = KeeperLink::FromEnvironment();
  const bool survive = !config.proto().has_survive() || config.proto().survive();
  if (keeper_socket < 0 && survive && !no_keeper) {
    LogError(TurnIntoKeeper(argv));
    return kFailed;
  }

  // Before there are threads, so that all of them leave these signals to the loop.
  const sigset_t stop_signals = StopSignals();
  pthread_sigmask(SIG_BLOCK, &stop_signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  // Before a spare is given what the agent holds.
  const DescriptorLimit descriptors =
      RaiseDescriptorLimit(DescriptorsFor(config.limits(), config.connections_max()));
  std::unique_ptr<KeeperLink> link;
  if (keeper_socket >= 0) {
    absl::StatusOr<std::unique_ptr<KeeperLink>> opened = KeeperLink::Open(keeper_socket);
    absl::Status status = opened.ok() ? (*opened)->AwaitGo() : opened.status();
    if (!status.ok()) {
      LogError(status);
      return kFailed;
    }
    link = *std::move(opened);
  }
  return AgentProcess(std::move(config), std::move(listen), stop_signals, descriptors,
                      std::move(link))
      .Run();
}

}  // namespace
}  // namespace deka::server

int main(int argc, char** argv) { return deka::server::Main(argc, argv); }
