"""Ask a GGUF model one question in llama.cpp.

python examples/ask.py SmolLM2-115M-q8_0.gguf "What is the capital of France?"
"""

import sys

import xllamacpp

path, question = sys.argv[1:]
settings = xllamacpp.CommonParams()
settings.model.path = path
settings.n_ctx = 1024
settings.verbosity = -1  # llama.cpp is silent

server = xllamacpp.Server(settings)
messages = [{"role": "user", "content": question}]
reply = server.handle_chat_completions({"messages": messages, "max_tokens": 64, "temperature": 0})

print("Question:", question)
print("Answer:  ", reply["choices"][0]["message"]["content"].strip())
print(f"Speed:    {reply['timings']['predicted_per_second']:.0f} tokens/s")
