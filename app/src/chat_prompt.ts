/** The text of a conversation, by the chat template in the model's file. */

import { Template } from "@huggingface/jinja";

import type { ChatMessage } from "./engine";

/** What llama.cpp uses for a model without a template. */
const CHATML =
  "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

export class ChatPrompt {
  private readonly template: Template;

  /** Fails if the template does not work for the shortest of conversations. */
  constructor(
    source: string | undefined,
    private readonly tokens: { bos: string; eos: string },
  ) {
    this.template = new Template(source || CHATML);
    this.render([{ role: "user", content: "a" }]);
  }

  /** The text up to where the model's answer begins. */
  render(messages: readonly ChatMessage[]): string {
    try {
      return this.plain(messages);
    } catch (error) {
      const [system, user, ...rest] = messages;
      if (system?.role !== "system" || user?.role !== "user") throw error;
      // Templates of models without a system role refuse one: it goes in front of the first message, as in llama.cpp.
      return this.plain([{ role: "user", content: `${system.content}\n${user.content}` }, ...rest]);
    }
  }

  private plain(messages: readonly ChatMessage[]): string {
    const { bos, eos } = this.tokens;
    return this.template.render({
      messages: messages.map(({ role, content }) => ({ role, content })),
      add_generation_prompt: true,
      bos_token: bos,
      eos_token: eos,
    });
  }
}
