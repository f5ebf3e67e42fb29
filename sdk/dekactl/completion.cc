#include <memory>
#include <string>

#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/completion_script.h"

namespace deka::dekactl {

void AddCompletion(CLI::App& app, Context& context) {
  const auto shell = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("completion",
                                         "Completes commands, options and children in a shell\n\n"
                                         "  source <(dekactl completion bash)");
  command->add_option("SHELL", *shell, "bash or zsh")
      ->type_name("bash|zsh")
      ->option_text(" ")
      ->required()
      ->check(CLI::Validator(
          [](std::string& word) {
            return word == "bash" || word == "zsh" ? "" : word + " is not known; write bash or zsh";
          },
          ""));
  command->callback([shell, &app, &context] {
    std::string script = *shell == "bash" ? BashCompletion(app) : ZshCompletion(app);
    script.pop_back();
    context.out.Line(script);
    context.exit_code = context.Written();
  });
}

}  // namespace deka::dekactl
