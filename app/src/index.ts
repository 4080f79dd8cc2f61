import { startPage } from "./shell";
import { Engine } from "./engine";
import { fetchModel } from "./model_files";
Object.assign(globalThis, { startPage, Engine, fetchModel });
void startPage();
