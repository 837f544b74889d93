// A picture from the camera.

import { setError, showOwnImage } from "./actions.js";
import { byId } from "./dom.js";
import { extractPixels } from "./image-files.js";
import { info } from "./info.js";

let stream = null;
let isOpening = false; // a second stream would stay on when the first one is stopped

export async function openCamera() {
  if (stream || isOpening) return;
  isOpening = true;
  setError("");
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    byId("video").srcObject = stream;
    byId("camera-dialog").showModal();
  } catch {
    stopCamera();
    setError("There is no camera, or the browser does not allow this page to use it.");
  } finally {
    isOpening = false;
  }
}

export function stopCamera() {
  if (stream) stream.getTracks().forEach((track) => track.stop());
  stream = null;
  byId("video").srcObject = null;
}

export async function takePicture() {
  const video = byId("video");
  if (!video.videoWidth) return;
  const image = extractPixels(video, video.videoWidth, video.videoHeight, info.channels);
  byId("camera-dialog").close();
  await showOwnImage(image, "camera.png");
}
