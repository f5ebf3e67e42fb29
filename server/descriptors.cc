#include "server/descriptors.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>

namespace deka::server {

size_t DescriptorsFor(const agent::Limits& limits, size_t connections_max) {
  return kDescriptorsReserved + connections_max + kDescriptorsOfChild * limits.children_max;
}

DescriptorLimit RaiseDescriptorLimit(size_t wanted) {
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  const size_t before = limit.rlim_cur;
  if (wanted > limit.rlim_max) {
    rlim_t most = 0;
    std::ifstream("/proc/sys/fs/nr_open") >> most;
    rlimit higher = {};
    higher.rlim_cur = higher.rlim_max = std::max(std::min<rlim_t>(wanted, most), limit.rlim_max);
    if (setrlimit(RLIMIT_NOFILE, &higher) == 0) return {before, higher.rlim_cur};
  }
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  getrlimit(RLIMIT_NOFILE, &limit);
  return {before, limit.rlim_cur};
}

std::string FitToDescriptors(size_t descriptors, agent::Limits& limits, size_t& connections_max) {
  if (DescriptorsFor(limits, connections_max) <= descriptors) return "";
  const size_t usable = descriptors - std::min(descriptors, kDescriptorsReserved);
  // Clients get a quarter at most, so that there are children to talk to.
  const size_t connections = std::clamp<size_t>(usable / 4, 1, connections_max);
  const size_t children = std::clamp<size_t>(
      (usable - std::min(usable, connections)) / kDescriptorsOfChild, 1, limits.children_max);
  std::string allowed;
  if (children < limits.children_max) {
    allowed = fmt::format("{} children (children_max was {})", children, limits.children_max);
  }
  if (connections < connections_max) {
    allowed += fmt::format("{}{} connections (connections_max was {})",
                           allowed.empty() ? "" : " and ", connections, connections_max);
  }
  connections_max = connections;
  limits.children_max = children;
  return fmt::format(
      "The limit of {} descriptors allows {}. Raise the hard limit (ulimit -Hn) for more.",
      descriptors, allowed);
}

}  // namespace deka::server
