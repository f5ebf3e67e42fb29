// A directory of its own in /tmp, gone with it.
#ifndef TESTS_VALIDATOR_DIRECTORY_H_
#define TESTS_VALIDATOR_DIRECTORY_H_

#include <stdlib.h>

#include <filesystem>
#include <string>
#include <system_error>

namespace deka::validator {

class Directory {
 public:
  // Not in TEST_TMPDIR: a socket's path holds 107 bytes.
  Directory() {
    if (mkdtemp(path_.data()) == nullptr) path_.clear();
  }
  ~Directory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }

  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  // Empty: there is none.
  const std::string& path() const { return path_; }

 private:
  std::string path_ = "/tmp/deka-test-XXXXXX";
};

}  // namespace deka::validator

#endif  // TESTS_VALIDATOR_DIRECTORY_H_
