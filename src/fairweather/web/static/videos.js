// Videos on the page. Until a video is restored, the page shows a frame of it like a photo; then both videos play under
// the slider: the restored one leads, and the original one follows. page.js calls what is returned here.
window.fairweatherVideos = (() => {
  "use strict";
  // milliseconds between polls, and further ones where the server does not respond; seconds and rates of synchronization
  const POLL = 400, RETRY_DELAY = 2000, JUMP = 0.3, WAIT = 0.06, TOLERANCE = 0.015, MAX_RATE_CHANGE = 0.25;
  const OLD_SETTINGS = "with the previous settings";
  let page, root, before, after, loadedJob = null;

  const find = (selector, base = root) => base.querySelector(selector);
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  const settings = (photo) => page.query(photo, page.state.strength).toString();
  const busy = (job) => Boolean(job) && !["done", "failed"].includes(job.state);
  const finished = (photo) => photo.job?.state === "done" && photo.job.settings === settings(photo);

  // The download of a photo: undefined for one that is not a video, null until it is restored, else [address, name].
  function link(photo) {
    if (!photo?.result?.video) return undefined;
    return photo.status === "ready" && finished(photo) ? [`/api/v1/videos/${photo.job.id}/result`, photo.job.download] : null;
  }

  // ---- restoring --------------------------------------------------------------------------------------------------

  async function restore() {
    const photo = page.current();
    if (!photo || photo.status !== "ready" || busy(photo.job)) return;
    forget(photo);
    const job = photo.job = { state: "starting", settings: settings(photo), frames: 0, total_frames: photo.result.video.frames };
    page.draw();
    find("[data-do=stop]").focus();
    const started = await page.call(photo, "POST", `/page/photos/${photo.token}/video?${job.settings}`);
    if (photo.job !== job) return unwanted(started);  // cancelled meanwhile
    if (started && started !== "gone") {
      Object.assign(job, started);
      return watch(photo, job);
    }
    if (started === "gone") return lost(photo);
    photo.job = null;
    page.draw();
  }

  // The server was restarted, or the video has expired: it is sent again, and may then be restored.
  function lost(photo) {
    if (loadedJob && loadedJob === photo.job) unload();
    const job = { state: "failed", error: { message: "it is not stored on the server any more: restore it again" } };
    Object.assign(photo, { token: null, job, status: "waiting", message: "sending it again" });
    page.draw();
    page.next();
  }

  async function watch(photo, job) {
    while (photo.job === job && busy(job)) {
      await wait(POLL);
      const answer = await fetch(`/api/v1/videos/${job.id}`).catch(() => null);
      const status = answer && await answer.json().catch(() => null);
      if (photo.job !== job) return;
      if (answer?.status === 404) return lost(photo);
      job.unreachable = !answer?.ok;
      if (job.unreachable) await wait(RETRY_DELAY);
      else Object.assign(job, status);
      if (busy(job) && photo === page.current()) draw(photo);
    }
    if (photo.job !== job) return;
    page.announce(job.state === "done" ? `${photo.name}: the video is restored${finished(photo) ? "" : ` ${OLD_SETTINGS}`}` : job.error?.message || `${photo.name} was cancelled`);
    const focused = find(".fw-video").contains(document.activeElement);
    page.draw();
    if (focused && photo === page.current()) find(job.state === "done" ? "[data-do=play]" : "[data-do=video]").focus();
  }

  const drop = (id) => fetch(`/api/v1/videos/${id}`, { method: "DELETE", keepalive: true }).catch(() => null);

  // Remove what the server started for a photo or video that was removed or cancelled meanwhile.
  function unwanted(started) {
    if (started?.state) drop(started.id);
    else if (started?.token) fetch(`/page/photos/${started.token}`, { method: "DELETE" }).catch(() => null);
  }

  function forget(photo) {
    if (photo.job?.id) drop(photo.job.id);
    if (loadedJob && loadedJob === photo.job) unload();
    photo.job = null;
  }

  function stop() {
    const photo = page.current();
    forget(photo);
    page.announce(`${photo.name} was cancelled`);
    page.draw();
    find("[data-do=video]").focus();
  }

  // ---- drawing ----------------------------------------------------------------------------------------------

  function draw(photo) {
    if (!root) return;
    const video = photo?.result?.video, job = photo?.job, stage = find(".fw-stage");
    const ready = Boolean(video) && photo.status === "ready";
    const plays = ready && finished(photo) && !page.state.map;
    find(".fw-video").hidden = !video || photo.status === "error";
    stage.classList.toggle("fw-plays", plays);
    plays ? load(job) : pause();
    if (!video) return;
    find(".fw-video-work").hidden = !busy(job);
    find(".fw-video-play").hidden = !plays;
    find(".fw-video-start").hidden = busy(job) || finished(photo);
    const nothing = ready && (!photo.result.models.length || page.state.strength === 0), button = find("[data-do=video]");
    button.disabled = !ready || nothing;
    button.textContent = job ? "Restore the video again" : "Restore the video";
    const problem = job?.state === "failed" ? job.error?.message || "it was cancelled" : "";
    const done = job?.state === "done" ? `restored ${OLD_SETTINGS}` : size(video);
    const note = find(".fw-video-start span");
    note.textContent = problem || (nothing ? "there is nothing to remove" : done);
    note.classList.toggle("fw-bad", Boolean(problem));
    if (busy(job)) work(photo, job);
  }

  const size = (video) => [video.frames ? `${video.frames} frame${video.frames === 1 ? "" : "s"}` : "", video.seconds ? `${video.seconds.toFixed(1)} s` : ""].filter(Boolean).join(", ");

  function work(photo, job) {
    const bar = find(".fw-video-work progress"), parts = [];
    if (job.total_frames) bar.value = Math.min(1, job.frames / job.total_frames); else bar.removeAttribute("value");
    if (job.unreachable) parts.push("the server does not respond; trying again");
    else if (job.state === "starting") parts.push(photo.message || "starting");
    else if (job.state === "waiting") parts.push("waiting for other videos");
    else if (!job.frames) parts.push("starting");
    else {
      parts.push(job.total_frames ? `${job.frames} of ${job.total_frames} frames` : `${job.frames} frames`);
      if (job.frames_per_second) parts.push(`${job.frames_per_second.toFixed(1)} per second`);
      if (job.seconds_left !== null) parts.push(`${clock(Math.ceil(job.seconds_left))} left`);
    }
    if (job.settings !== settings(photo)) parts.push(OLD_SETTINGS);
    find(".fw-video-work span").textContent = parts.join(" · ");
  }

  // ---- playing ----------------------------------------------------------------------------------------------------

  function load(job) {
    if (loadedJob === job) return;
    loadedJob = job;
    find(".fw-stage").classList.remove("fw-video-loaded");
    before.src = `/page/videos/${job.id}/before`;
    after.src = `/page/videos/${job.id}/after`;
    sound(false);
    find("[data-do=mute]").hidden = !job.sound;
  }

  function unload() {  // so that the browser frees their memory and stops loading them
    loadedJob = null;
    pause();
    find(".fw-stage").classList.remove("fw-video-loaded");
    for (const video of [before, after]) { video.removeAttribute("src"); video.load(); }
  }

  function loaded() {  // once both have a frame; until then the photo is shown
    if (!loadedJob || before.readyState < 2 || after.readyState < 2 || find(".fw-stage").classList.contains("fw-video-loaded")) return;
    find(".fw-stage").classList.add("fw-video-loaded");
    find(".fw-seek").max = after.duration;
    drawPosition();
    if (find(".fw-stage").classList.contains("fw-plays") && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
  }

  function play() {
    before.currentTime = after.currentTime;
    Promise.all([after.play(), before.play()]).catch(() => null);
  }

  function pause() {
    after.pause();
    before.pause();
  }

  function toggle() {
    if (!loadedJob || !find(".fw-stage").classList.contains("fw-plays")) return;
    after.paused ? play() : pause();
  }

  function seek(seconds) {
    after.currentTime = before.currentTime = seconds;
    drawPosition();
  }

  // Small differences are corrected by the playback rate, which is invisible, large ones by a jump. Where a machine is
  // too slow for two videos, the leading one slows down.
  function synchronize() {
    const apart = before.currentTime - after.currentTime;
    if (Math.abs(apart) > JUMP) before.currentTime = after.currentTime;
    before.playbackRate = Math.abs(apart) < TOLERANCE ? 1 : 1 + Math.min(MAX_RATE_CHANGE, Math.max(-MAX_RATE_CHANGE, -2 * apart));
    after.playbackRate = apart < -WAIT ? 0.5 : 1;
    if (before.paused && !before.ended && !after.paused) before.play().catch(() => null);
    drawPosition();
    if (!after.paused) requestAnimationFrame(synchronize);
  }

  function drawPosition() {
    const bar = find(".fw-seek"), now = after.currentTime, whole = after.duration || 0, spoken = `${clock(now)} of ${clock(Math.round(whole))}`;
    bar.value = now;
    bar.style.setProperty("--fw-at", `${whole ? 100 * now / whole : 0}%`);
    if (bar.getAttribute("aria-valuetext") !== spoken) bar.setAttribute("aria-valuetext", spoken);
    find(".fw-time").textContent = whole < 60 ? `${now.toFixed(1)} / ${whole.toFixed(1)} s` : `${clock(now)} / ${clock(whole)}`;
  }

  function drawButtons() {
    const paused = after.paused;
    find("[data-do=play]").setAttribute("aria-label", paused ? "Play" : "Pause");
    find(".fw-video").classList.toggle("fw-paused", paused);
    if (paused) before.pause(); else requestAnimationFrame(synchronize);
  }

  function sound(on) {
    after.muted = !on;
    find("[data-do=mute]").setAttribute("aria-pressed", on);
    find(".fw-video").classList.toggle("fw-sound", on);
  }

  function playbackFailed() {
    if (!loadedJob) return;
    const photo = page.state.photos.find((photo) => photo.job === loadedJob);
    unload();
    if (!photo) return;
    fetch(`/api/v1/videos/${photo.job.id}`).then((answer) => {
      if (answer.status === 404) return lost(photo);
      page.announce(`${photo.name} cannot be played in this browser: download it`);
    }).catch(() => null);
  }

  function keys(event) {
    if (event.key !== " " || event.target.closest("button, a, select, textarea, input:not(.fw-seek)")) return;
    if (!loadedJob || !find(".fw-stage").classList.contains("fw-plays")) return;
    event.preventDefault();
    toggle();
  }

  function start(element, given) {
    root = element;
    page = given;
    before = find(".fw-video-before");
    after = find(".fw-video-after");
    before.muted = after.muted = true;
    for (const video of [before, after]) {
      video.addEventListener("canplay", loaded);
      video.addEventListener("error", playbackFailed);
    }
    for (const name of ["play", "pause"]) after.addEventListener(name, drawButtons);
    after.addEventListener("seeked", drawPosition);
    after.addEventListener("waiting", () => before.pause());
    after.addEventListener("ended", () => { seek(0); play(); });
    find(".fw-seek").addEventListener("input", (event) => seek(Number(event.target.value)));
    document.addEventListener("keydown", keys);
    addEventListener("pagehide", (event) => {  // only this page knows the video's id
      if (!event.persisted) page.state.photos.forEach((photo) => busy(photo.job) && forget(photo));
    });
  }

  return { start, draw, link, remove: forget, unwanted, actions: { video: restore, stop, play: toggle, mute: () => sound(after.muted) } };
})();
