// A picture from the camera.

import { showOwn } from "./act.js";
import { problem } from "./draw.js";
import { pixelsOf } from "./read.js";
import { $, about } from "./state.js";

let stream = null;

export async function openCamera() {
  problem("");
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    $("video").srcObject = stream;
    $("taking").showModal();
  } catch {
    problem("There is no camera here, or the browser does not let this page use it.");
  }
}

export function stopCamera() {
  if (stream) stream.getTracks().forEach((track) => track.stop());
  stream = null;
  $("video").srcObject = null;
}

export async function takePicture() {
  const video = $("video");
  if (!video.videoWidth) return;
  const image = pixelsOf(video, video.videoWidth, video.videoHeight, about.channels);
  $("taking").close();
  await showOwn(image, "camera.png");
}
