# settings of one training
$sd_scripts_dir = "X:\tools\sd-scripts\"
$ckpt = "X:\models\anime.safetensors" # what to train on
$is_sd_v2_ckpt = 0
$is_sd_v2_768_ckpt = 0
$image_dir = "X:\train\img\"
$reg_dir = "X:\train\img_reg\"
$output_dir = "X:\LoRA\"
$output_name = "my_style_v1"
$use_vae = 0
$vae_path = "X:\models\some.vae.pt"
$desired_training_time = 0
$gpu_training_speed = "1.23it/s | 1.23s/it"
$train_batch_size = 1
$resolution = 512
$num_epochs = 10
$save_every_n_epochs = 1
$save_last_n_epochs = 999
$max_token_length = 75
$clip_skip = 1
$learning_rate = 1e-4
$unet_lr = $learning_rate
$text_encoder_lr = $learning_rate / 2 # half
$scheduler = "cosine_with_restarts"
$lr_warmup_ratio = 0.05
$network_dim = 128
$save_precision = "fp16"
$mixed_precision = "fp16"
$is_random_seed = 1
$shuffle_caption = 1
$keep_tokens = 1
$do_not_interrupt = 0
$logging_enabled = 0
$logging_dir = "X:\LoRA\logs\"
$log_prefix = $output_name
$debug_dataset = 0
$test_run = 0
$my_note = "first try"

# from here on nothing needs to be changed
if (Test-Path $image_dir) {
    $shown = 0
    foreach ($folder in Get-ChildItem $image_dir -Directory) {
        $shown += ([int]$folder.Name.Split("_")[0]) * (Get-ChildItem $folder.FullName -Include *.png, *.jpg -Recurse).Count
    }
    $max_train_steps = [int]($shown * $num_epochs / $train_batch_size)
    $lr_warmup_steps = [int]($max_train_steps * $lr_warmup_ratio)
    $seed = 1337
    if ($is_random_seed -gt 0) { $seed = Get-Random }
    $arguments = "--pretrained_model_name_or_path=`"$ckpt`" --output_name=`"$output_name`" --output_dir=`"$output_dir`" --train_data_dir=`"$image_dir`" --reg_data_dir=`"$reg_dir`" --network_module=networks.lora --network_dim=$network_dim --resolution=$resolution --enable_bucket --min_bucket_reso=256 --max_bucket_reso=1024 --caption_extension=`".txt`" --keep_tokens=$keep_tokens --clip_skip=$clip_skip --train_batch_size=$train_batch_size --max_train_steps=$([int]$max_train_steps) --learning_rate=$learning_rate --text_encoder_lr=$text_encoder_lr --unet_lr=$unet_lr --lr_scheduler=$scheduler --lr_warmup_steps=$lr_warmup_steps --prior_loss_weight=1 --seed=$seed --use_8bit_adam --xformers --cache_latents --save_model_as=safetensors --save_every_n_epochs=$save_every_n_epochs --save_last_n_epochs=$save_last_n_epochs"
    if ($mixed_precision -ne "no") { $arguments += " --mixed_precision=$mixed_precision" }
    if ($shuffle_caption -ge 1) { $arguments += " --shuffle_caption" }
    if ($max_token_length -gt 75) { $arguments += " --max_token_length=$($max_token_length)" }
    accelerate launch --num_cpu_threads_per_process 12 train_network.py $arguments
}
