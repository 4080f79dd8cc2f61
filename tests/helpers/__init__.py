"""What tests share: tiny models, a Hub of their own, tasks and cards."""
