// The version of this deka-bridge: what `--version` says.
#ifndef IPC_VERSION_H_
#define IPC_VERSION_H_

#include <string_view>

namespace deka::ipc {

inline constexpr std::string_view kVersion = "0.1.0";

}  // namespace deka::ipc

#endif  // IPC_VERSION_H_
