// A child that uses the core at its end, as a C++ child does.
//
//   core_child echo    sends back each message
//   core_child         carries out one Order a message (message.h)

#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "ipc/event_loop.h"
#include "ipc/process.h"
#include "tests/benchmark/message.h"

namespace deka::benchmark {
namespace {

class Child : public ipc::Process::Listener {
 public:
  explicit Child(bool echo) : echo_(echo) {}

  int Run() {
    absl::StatusOr<std::unique_ptr<ipc::Process>> process = ipc::Process::Open(loop_, {}, *this);
    if (!process.ok()) {
      std::fprintf(stderr, "core_child: %s\n", std::string(process.status().message()).c_str());
      return 1;
    }
    process_ = *std::move(process);
    loop_.Run();
    return 0;
  }

 private:
  void OnMessage(ipc::Message message) override {
    if (echo_) {
      (void)process_->Send(message.json);
      return;
    }
    const std::optional<Order> order = Order::FromJson(std::string(message.json));
    if (!order.has_value()) return;
    message_ = MessageOf(static_cast<size_t>(order->bytes));
    left_ = order->messages;
    sent_ = 0;
    SendSome();
  }
  void OnDrain() override { SendSome(); }

  // Until the channel asks to wait.
  void SendSome() {
    while (left_ > 0) {
      const absl::StatusOr<ipc::Channel::Accepted> accepted = process_->Send(message_);
      if (!accepted.ok()) return;
      --left_;
      ++sent_;
      if (*accepted == ipc::Channel::Accepted::kAcceptedHigh) return;
    }
    if (sent_ >= 0) (void)process_->Send(SentJson(sent_));
    sent_ = -1;
  }

  const bool echo_;
  ipc::EventLoop loop_;
  std::unique_ptr<ipc::Process> process_;
  std::string message_;
  int64_t left_ = 0;
  int64_t sent_ = -1;  // -1: nothing is to be told
};

}  // namespace
}  // namespace deka::benchmark

int main(int argc, char** argv) {
  return deka::benchmark::Child(argc > 1 && std::string_view(argv[1]) == "echo").Run();
}
