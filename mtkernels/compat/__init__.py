"""Drop-ins: the weight averages of other libraries by their own names and arguments, moved by mtkernels.

averaged_model  ema_multi_avg_fn, for torch.optim.swa_utils.AveragedModel and Lightning's WeightAveraging
timm            ModelEmaV3
ema_pytorch     EMA
torch_ema       ExponentialMovingAverage
diffusers       EMAModel
transformers    EmaCallback, a TrainerCallback; needs transformers
lightning       EmaCallback, a Callback; needs lightning or pytorch-lightning

Only the two callbacks import the library that they plug into. docs/migration.md has the lines to change.
"""
