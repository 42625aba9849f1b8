"""For Hugging Face Transformers' `Trainer`: a plan's arguments, optimizer and schedule, the noise scale in its logs. docs/transformers.md.

plan = bigbatch.plan(recipe, global_batch=1024)
arguments, left_out = training_arguments(plan)
trainer = Trainer(model, TrainingArguments("out", **arguments), train_dataset=data, optimizers=build(model, plan))
trainer.add_callback(BigBatchCallback(trainer))
trainer.train()
"""

from bigbatch.integrations.transformers.arguments import Arguments, training_arguments
from bigbatch.integrations.transformers.callback import BigBatchCallback
from bigbatch.integrations.transformers.ruled_batch import build

__all__ = ["Arguments", "BigBatchCallback", "build", "training_arguments"]
